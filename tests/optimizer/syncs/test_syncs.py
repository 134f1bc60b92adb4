"""Syncs against NumPy references, and what holds for every one of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from desloc_jax.optimizer import syncs
from desloc_jax.optimizer.averaging import worker_mean, worker_share
from tests.references import syncs_reference as reference
from tests.syncing import (
  bits_of,
  BLOCK,
  init,
  LIKE,
  make_reduce,
  random_locals,
  relative_error,
  sent_bytes,
  SHAPE,
  SIZE,
  to_tree,
  to_vectors,
  WEIGHTS,
  WORKERS,
)

SYNCS = 50
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
