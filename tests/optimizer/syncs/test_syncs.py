"""Syncs against NumPy references, and what holds for every one of them."""

import jax
from jax.extend import core
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from desloc_jax.optimizer import syncs
from desloc_jax.optimizer.averaging import worker_mean, worker_share
from desloc_jax.optimizer.over_workers import AXIS_NAMES, over_workers
from desloc_jax.optimizer.syncs import MEMORY_AXES
from desloc_jax.optimizer.syncs.compressed import bits, vectors
from desloc_jax.programs.hlo import read_collectives
from tests.references import syncs_reference as reference

WORKERS, SYNCS, BLOCK = 5, 50, 16
LIKE = {'b': jnp.zeros(7), 's': jnp.zeros(()), 'w': jnp.zeros((13, 11))}
SIZE = 7 + 1 + 13 * 11
SHAPE = (WORKERS, SIZE)
WEIGHTS = np.array([1.0, 0.0, 2.0, 1.0, 0.5])
CHANNELS = {
  'slices': (
    syncs.in_slices(syncs.uniform(4, BLOCK)),
    lambda: reference.slices(reference.uniform(4), BLOCK),
  ),
  'everybody': (
    syncs.to_everybody(syncs.largest(3, BLOCK)),
    lambda: reference.everybody(reference.largest(3, 2), BLOCK, senders_only=False),
  ),
}


def quantised(number_of_bits, decay=0.9, logarithms=False):
  if logarithms:
    code = reference.logarithmic(number_of_bits)
  else:
    code = reference.four_levels if number_of_bits == 2 else reference.uniform(number_of_bits)
  return (
    syncs.quantised(number_of_bits, BLOCK, decay, logarithms),
    lambda: reference.Feedback(reference.slices(code, BLOCK), decay, SHAPE, positive=logarithms),
  )


def topk(average, number_of_bits=2, decay=0.95):
  channel = reference.everybody(
    reference.largest(3, number_of_bits), BLOCK, senders_only=average == 'senders'
  )
  return (
    syncs.topk(3, BLOCK, number_of_bits, decay, average),
    lambda: reference.Feedback(channel, decay, SHAPE),
  )


def controlled(name, eta):
  channel, of_reference = CHANNELS[name]
  sync = syncs.econtrol(channel, eta) if eta else syncs.ef21(channel)
  return sync, lambda: reference.EControl(of_reference(), eta, SHAPE)


# name: (sync, its reference, whether it is for differences from a reference).
OPERATORS = {
  'int8': (*quantised(8), True),
  'int4': (*quantised(4), True),
  'int2': (*quantised(2), True),
  'int4 without memory': (*quantised(4, decay=0), True),
  'int8 of a moment': (*quantised(8), False),
  'logarithms, 8 bits': (*quantised(8, logarithms=True), False),
  'logarithms, 4 bits': (*quantised(4, logarithms=True), False),
  'topk over senders': (*topk('senders'), True),
  'topk over all': (*topk('all'), True),
  'topk of floats': (*topk('all', 32), True),
  'ef21': (*controlled('slices', 0), True),
  'ef21 of the largest': (*controlled('everybody', 0), True),
  'ef21 of a moment': (*controlled('slices', 0), False),
  'econtrol': (*controlled('slices', 0.2), True),
  'econtrol of the largest': (*controlled('everybody', 0.2), True),
  'topk of a moment': (
    syncs.anchored(topk('senders')[0]),
    lambda: reference.Anchored(topk('senders')[1](), np.zeros(SIZE)),
    False,
  ),
}  # fmt: skip


def to_tree(vectors):
  """[..., n] -> arrays of the shapes of `LIKE`, in the order of its leaves."""
  sizes = [leaf.size for leaf in jax.tree.leaves(LIKE)]
  parts = np.split(np.asarray(vectors), np.cumsum(sizes)[:-1], axis=-1)
  leaves = [
    jnp.asarray(p.reshape((*p.shape[:-1], *x.shape)))
    for p, x in zip(parts, jax.tree.leaves(LIKE), strict=True)
  ]
  return jax.tree.unflatten(jax.tree.structure(LIKE), leaves)


def to_vectors(tree, lead=0):
  return np.concatenate(
    [np.asarray(x).reshape(*x.shape[:lead], -1) for x in jax.tree.leaves(tree)], axis=-1
  )


def relative_error(x, expected):
  """Scales are sent in float32: where a float64 sum is rounded otherwise, they differ by its last bit."""
  return np.linalg.norm(x - expected) / np.linalg.norm(expected)


def make_reduce(sync, weights=None, axis_name='workers'):
  """Returns (local [workers, ...], reference, memory) -> (agreed, memory) over a vmapped axis."""

  def of_worker(local, shared, memory):
    share = None if weights is None else worker_share(axis_name, jnp.asarray(weights), None)
    return sync.reduce(local, shared, memory, syncs.Context(axis_name, share, jnp.int32(0)))

  axes = (0, None, MEMORY_AXES), (None, MEMORY_AXES)
  return jax.jit(jax.vmap(of_worker, in_axes=axes[0], out_axes=axes[1], axis_name=axis_name))


def init(sync, like=LIKE, workers=WORKERS):
  return jax.vmap(lambda: sync.init(like), axis_size=workers, out_axes=MEMORY_AXES)()


def bits_of(tree):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize('weights', [None, WEIGHTS], ids=['equal', 'weighted'])
@pytest.mark.parametrize('name', OPERATORS)
def test_fifty_syncs_equal_the_reference(name, weights):
  sync, make_reference, has_reference = OPERATORS[name]
  expected, rng = make_reference(), np.random.default_rng(3)
  with jax.enable_x64(True):
    like = to_tree(np.zeros(SIZE))
    reduce, memory = make_reduce(sync, weights), init(sync, like)
    shared = np.zeros(SIZE)
    for _ in range(SYNCS):
      local = shared + rng.normal(size=SHAPE) * 10 ** rng.uniform(-3, 1, SIZE)
      if 'logarithms' in name:
        local = local**2
      agreed, memory = reduce(to_tree(local), to_tree(shared) if has_reference else None, memory)
      shared = expected(local, shared if has_reference else None, weights)
      assert relative_error(to_vectors(agreed), shared) < 1e-6
      if not has_reference:
        shared = np.zeros(SIZE)
    own = memory.own['h'] if isinstance(memory.own, dict) and 'h' in memory.own else memory.own
    if jax.tree.leaves(own):
      inner = getattr(expected, 'inner', expected)
      kept = inner.h if hasattr(inner, 'h') else inner.e
      assert relative_error(to_vectors(own, 1), kept) < 1e-6


OPERATORS_OF_ALL = {
  'mean': syncs.mean(),
  '32 bits': syncs.quantised(32),
  'topk of everything': syncs.anchored(syncs.topk(BLOCK, BLOCK, 32, average='all')),
  'ef21 of 32 bits': syncs.ef21(syncs.in_slices(syncs.floats(jnp.float32))),
}


def random_locals(seed=0, like=LIKE, workers=WORKERS):
  rng = np.random.default_rng(seed)
  draw = lambda x: jnp.asarray(rng.normal(size=(workers, *x.shape)), x.dtype)
  return jax.tree.map(draw, like)


@pytest.mark.parametrize('weights', [None, WEIGHTS], ids=['equal', 'weighted'])
@pytest.mark.parametrize('name', OPERATORS_OF_ALL)
def test_what_leaves_nothing_out_is_the_mean_bit_for_bit(name, weights):
  sync = OPERATORS_OF_ALL[name]
  local = random_locals()
  agreed, _ = make_reduce(sync, weights)(local, None, init(sync))

  def of_worker(local):
    share = None if weights is None else worker_share('workers', jnp.asarray(weights), None)
    return worker_mean(local, 'workers', share)

  expected = jax.jit(jax.vmap(of_worker, axis_name='workers', out_axes=None))(local)
  if name in ('mean', '32 bits'):
    assert bits_of(agreed) == bits_of(expected)
  # 0 - (0 - x) is x, but for the sign of a zero.
  jax.tree.map(np.testing.assert_array_equal, agreed, expected)


def test_32_bits_near_a_reference_are_the_mean_to_within_rounding():
  local, shared = random_locals(), jax.tree.map(lambda x: x[0], random_locals(1))
  sync = syncs.quantised(32)
  agreed, _ = make_reduce(sync)(local, shared, init(sync))
  expected = jax.tree.map(lambda x: x.mean(axis=0), local)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), agreed, expected
  )


def test_the_memory_removes_the_bias_of_rounding():
  """A small constant difference beside a large one rounds to zero at each sync, or adds up."""
  steps = jnp.full((WORKERS, BLOCK), 0.02).at[:, 0].set(1.0)  # int4: the unit is 1 / 7.

  def moved(decay):
    sync = syncs.quantised(4, BLOCK, decay)
    memory, shared = init(sync, {'w': steps[0]}), {'w': jnp.zeros(BLOCK)}
    reduce = make_reduce(sync)
    for _ in range(SYNCS):
      shared, memory = reduce({'w': shared['w'] - steps}, shared, memory)
    return -shared['w'][1] / SYNCS

  assert moved(0) == 0
  assert moved(1.0) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize('kind', ['normal', 'one alone', 'zeros among them', 'all the same'])
def test_two_bits_leave_less_than_there_was(kind):
  x = np.random.default_rng(0).normal(size=64)
  x = {
    'normal': x,
    'one alone': np.eye(64)[3],
    'zeros among them': x * (x > 1),
    'all the same': 0 * x + 1,
  }[kind]
  encoding = syncs.four_levels(64)
  error = x - np.asarray(encoding.decode(encoding.encode(jnp.asarray(x, jnp.float32)), jnp.float32))
  most = (x**2).sum() - 0.85 * 64 * np.abs(x).mean() ** 2
  assert (error**2).sum() <= most * (1 + 1e-5)
  if kind == 'normal':
    assert (error**2).mean() < 0.15 * (x**2).mean()  # .12 of many numbers.


def test_two_bits_with_memory_stay_bounded():
  """The second error weighs W times as much on one worker: it must not feed itself."""
  workers, sync = 16, syncs.quantised(2, 64)
  like = {'w': jnp.zeros(1024)}
  reduce, memory = make_reduce(sync), init(sync, like, workers)
  sizes = []
  for t in range(200):
    agreed, memory = reduce(random_locals(t, like, workers), None, memory)
    sizes.append(float(jnp.sqrt((memory.own['w'] ** 2).mean())))
  assert max(sizes[100:]) < 1.5 * max(sizes[50:100])
  assert max(sizes) < 20


def test_logarithms_make_no_zero_of_a_second_moment():
  values = jnp.asarray(
    10.0 ** np.random.default_rng(0).uniform(-14, 0, (WORKERS, 200)), jnp.float32
  )
  sync = syncs.quantised(4, 64, logarithms=True)
  reduce, memory = make_reduce(sync), init(sync, {'v': values[0]})
  for _ in range(10):
    agreed, memory = reduce({'v': values}, None, memory)
    assert (agreed['v'] > 0).all()
  sync = syncs.quantised(8, 64, decay=0, logarithms=True)
  within = 10 ** jnp.asarray(np.random.default_rng(1).uniform(-8, -4, (1, 64)), jnp.float32)
  same = jnp.tile(within, (WORKERS, 1))
  agreed, _ = make_reduce(sync)({'v': same}, None, syncs.Memory())
  np.testing.assert_allclose(agreed['v'], within[0], rtol=0.04)


# ---- On any number of devices, with workers that do not count.

MANY = 8
TREE = {
  'embed': jnp.zeros((16, 12)), 'bias': jnp.zeros(7), 'scalar': jnp.zeros(()),
  'half': jnp.zeros((5, 3), jnp.bfloat16), 'empty': jnp.zeros((0, 3)),
}  # fmt: skip
EVERY = {
  'int8': syncs.quantised(8, BLOCK),
  'int4': syncs.quantised(4, BLOCK),
  'topk': syncs.topk(3, BLOCK),
  'ef21': syncs.ef21(syncs.in_slices(syncs.four_levels(BLOCK))),
  'econtrol': syncs.econtrol(syncs.to_everybody(syncs.largest(3, BLOCK))),
  'exempt': syncs.exempt(syncs.quantised(8, BLOCK), 'bias|scalar'),
  'anchored': syncs.anchored(syncs.topk(3, BLOCK)),
}


def on_devices(sync, rows, fsdp, local, shared, weights=None, like=TREE):
  devices = np.array(jax.devices()[: rows * fsdp]).reshape(rows, fsdp)
  mesh = Mesh(devices, ('workers', 'fsdp'), axis_types=(AxisType.Auto,) * 2)

  def of_worker(local, shared, memory):
    share = None if weights is None else worker_share(AXIS_NAMES, weights, None)
    return jax.lax.cond(
      True, lambda *args: sync.reduce(*args, syncs.Context(AXIS_NAMES, share, jnp.int32(0))),
      lambda local, shared, memory: (shared, memory), local, shared, memory,
    )  # fmt: skip

  step = jax.jit(over_workers(of_worker, mesh, (0, None, MEMORY_AXES), (None, MEMORY_AXES)))
  place = lambda x: jax.device_put(
    x, NamedSharding(mesh, P('workers', None, 'fsdp') if x.shape[1:] == (16, 12) else P('workers'))
  )
  memory = init(sync, like, MANY)
  return step(jax.tree.map(place, local), shared, memory)


def layouts():
  return [(8, 1), (2, 1), (2, 2)]  # A worker a device, several a device, several devices a worker.


@pytest.mark.parametrize('name', EVERY)
def test_all_layouts_agree_and_who_does_not_count_adds_nothing(name):
  sync = EVERY[name]
  local, shared = random_locals(0, TREE, MANY), jax.tree.map(lambda x: x[0], random_locals(1, TREE))
  weights = jnp.array([1.0, 2.0, 0.0, 1.0, 1.0, 0.5, 3.0, 1.0])
  broken = jax.tree.map(lambda x: x.at[2].set(jnp.nan), local)
  expected, memory = on_devices(sync, 1, 1, broken, shared, weights)
  assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(expected))
  start = init(sync, TREE, MANY)
  kept = lambda tree: jax.tree.map(lambda x: x[2], tree.own)
  assert bits_of(kept(memory)) == bits_of(kept(start))
  for rows, fsdp in layouts():
    agreed, after = on_devices(sync, rows, fsdp, broken, shared, weights)
    for x in jax.tree.leaves(agreed):  # Each device decoded them itself.
      if x.is_fully_replicated:
        assert len({np.asarray(shard.data).tobytes() for shard in x.addressable_shards}) == 1
    close = lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-5, atol=1e-6
    )
    jax.tree.map(close, agreed, expected)
    if fsdp == 1:  # Else other workers average the slices, and keep their errors.
      jax.tree.map(close, after, memory)


@pytest.mark.parametrize('fsdp', [1, 2])
def test_large_arrays_are_cut_where_devices_share_them(fsdp, monkeypatch):
  """Blocks are the same on any number of devices; nothing is gathered to cut them."""
  monkeypatch.setattr(vectors, 'PACKED_BYTES', 1024)
  like = {'stack': jnp.zeros((3, 32, 24)), 'odd': jnp.zeros((17, 31)), 'small': jnp.zeros(5)}
  local = random_locals(0, like, 4)
  sync = syncs.quantised(8, BLOCK)
  expected, _ = make_reduce(sync)(local, None, init(sync, like, 4))
  mesh = Mesh(
    np.array(jax.devices()[: 4 * fsdp]).reshape(4, fsdp),
    ('workers', 'fsdp'),
    axis_types=(AxisType.Auto,) * 2,
  )

  def of_worker(local, memory):
    return sync.reduce(local, None, memory, syncs.Context(AXIS_NAMES, None, jnp.int32(0)))

  step = over_workers(of_worker, mesh, (0, MEMORY_AXES), (None, MEMORY_AXES))
  specs = {'stack': P(None, 'fsdp'), 'odd': P(), 'small': P()}
  shared = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
  own = jax.tree.map(lambda spec: NamedSharding(mesh, P('workers', *spec)), specs)
  memory = syncs.Memory(own, ())
  step = jax.jit(step, in_shardings=(own, memory), out_shardings=(shared, memory))
  agreed, _ = step(local, init(sync, like, 4))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), agreed, expected
  )
  text = step.lower(local, init(sync, like, 4)).compile().as_text()
  inside = [
    c for c in read_collectives(text) if not c.crosses([i // fsdp for i in range(4 * fsdp)])
  ]
  assert all(c.result_bytes < 3 * 32 * 24 * 4 for c in inside)  # None of the stack.


def sent_bytes(sync, like, workers=4):
  """Returns {primitive: bytes of its operands}, of one worker."""
  totals = {}

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      axes = eqn.params.get('axes', eqn.params.get('axis_name', ()))
      axes = axes if isinstance(axes, tuple) else (axes,)
      if 'workers' in axes and eqn.primitive.name != 'axis_index':
        size = sum(v.aval.size * v.aval.dtype.itemsize for v in eqn.invars)
        totals[eqn.primitive.name] = totals.get(eqn.primitive.name, 0) + size
      for inner in core.jaxprs_in_params(eqn.params):
        walk(inner)

  def reduce(local, shared):
    return sync.reduce(
      local, shared, sync.init(local), syncs.Context('workers', None, jnp.int32(0))
    )

  walk(jax.make_jaxpr(reduce, axis_env=[('workers', workers)])(like, like).jaxpr)
  return totals


@pytest.mark.parametrize('number_of_bits', [16, 8, 4, 2])
def test_bytes_of_quantised_syncs(number_of_bits):
  size = 2**20
  like = {'w': jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
  scales = 0 if number_of_bits == 16 else 4 * size // 256
  encoded = size * number_of_bits // 8 + scales
  sent = sent_bytes(syncs.quantised(number_of_bits), like)
  assert sent == {'all_to_all': encoded, 'all_gather': encoded // 4}


def test_bytes_of_the_largest_are_a_hundredth():
  size = 2**20
  like = {'w': jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
  sent = sent_bytes(syncs.topk(), like)
  assert sent == {'all_gather': size // 4096 * (64 * 12 // 8 + 64 * 2 // 8 + 4 * 4)}
  assert sum(sent.values()) < 4 * size / 100


@pytest.mark.parametrize('number_of_bits', [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize('count', [1, 7, 64])
def test_packed_numbers_come_out_again(number_of_bits, count):
  numbers = np.random.default_rng(0).integers(0, 2**number_of_bits, (3, count))
  packed = bits.pack(jnp.asarray(numbers), number_of_bits)
  assert packed.dtype == jnp.uint8
  assert packed.shape == (3, bits.packed_bytes(count, number_of_bits))
  assert packed.shape[-1] <= count * number_of_bits / 8 + 2
  np.testing.assert_array_equal(bits.unpack(packed, number_of_bits, count), numbers)


def test_one_worker_and_empty_trees_send_nothing():
  one = jax.tree.map(lambda x: x[:1], random_locals())
  for sync in EVERY.values():
    if sync is not EVERY['exempt']:
      agreed, _ = make_reduce(sync)(one, jax.tree.map(lambda x: x[0] + 1, one), init(sync, LIKE, 1))
      assert bits_of(agreed) == bits_of(jax.tree.map(lambda x: x[0], one))
  sync = syncs.quantised(8)
  assert sent_bytes(sync, {}) == {}


def reduce_alone(sync):
  return make_reduce(sync)(random_locals(), None, init(sync))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: syncs.quantised(3), '3 bits for a number; expected 32, 16, 8, 4 or 2'),
    (lambda: syncs.uniform(2), '2 bits for a number; expected 4, 8'),
    (lambda: syncs.quantised(8, decay=1.5), r'decay of a memory must be in \[0, 1\], got 1.5'),
    (lambda: syncs.topk(keep=65, chunk=64), 'cannot keep 65 of 64'),
    (lambda: syncs.topk(average='some'), "average is 'some'; expected 'senders' or 'all'"),
    (lambda: syncs.econtrol(CHANNELS['slices'][0], -1), 'eta must be >= 0, got -1'),
    (lambda: syncs.ef21(syncs.in_slices(syncs.logarithmic(8))), 'changes have signs'),
    (lambda: syncs.exempt(syncs.mean(), 'nothing').init(LIKE), 'match none of b, s, w'),
    (lambda: reduce_alone(syncs.topk()), 'put it inside anchored'),
    (lambda: sent_bytes(syncs.quantised(8), {'n': jnp.zeros(3, int)}), 'an array of int32'),
  ],
)
def test_what_cannot_work_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
