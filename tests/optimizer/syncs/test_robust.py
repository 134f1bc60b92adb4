"""Robust averages against NumPy, and what holds for each: nothing that a few send comes through."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from desloc_jax import desloc
from desloc_jax.optimizer import syncs
from tests import workers
from tests.references import syncs_reference as reference
from tests.syncing import (
  bits_of,
  init,
  LIKE,
  make_reduce,
  MANY,
  on_devices,
  random_locals,
  relative_error,
  sent_bytes,
  SHAPE,
  SIZE,
  to_tree,
  to_vectors,
  TREE,
  WEIGHTS,
)

RULES = {
  'trimmed_mean': (syncs.trimmed_mean, reference.trimmed, False),
  'median': (syncs.median, reference.median, False),
  'geometric_median': (syncs.geometric_median, reference.geometric_median, False),
  'krum': (syncs.krum, reference.krum, False),
  'clip_to_median': (syncs.clip_to_median, reference.clip_to_median, True),
}
SIZES = [leaf.size for leaf in jax.tree.leaves(LIKE)]


@pytest.mark.parametrize('weights', [None, WEIGHTS], ids=['equal', 'weighted'])
@pytest.mark.parametrize('neighbours', [False, True], ids=['alone', 'neighbours'])
@pytest.mark.parametrize('name', RULES)
def test_rules_equal_the_reference(name, neighbours, weights):
  """Also where one worker's vector is far away, and where it is not finite."""
  make, rule, differences = RULES[name]
  expected, rng = reference.Robust(rule, 1, neighbours, differences), np.random.default_rng(5)
  with jax.enable_x64(True):
    reduce = make_reduce(make(1, neighbours=neighbours), weights)
    for liar in (None, 1e6, np.nan, np.inf):
      shared = rng.normal(size=SIZE)
      local = shared + rng.normal(size=SHAPE) * 10 ** rng.uniform(-3, 1, SIZE)
      if liar is not None:
        local[3] *= liar
      for start in (shared, None):
        agreed, _ = reduce(
          to_tree(local), None if start is None else to_tree(start), syncs.Memory()
        )
        found = expected(local, start, weights)
        assert relative_error(to_vectors(agreed), found) < 2e-6, (liar, start is None)


@pytest.mark.parametrize('weights', [None, WEIGHTS], ids=['equal', 'weighted'])
def test_edit_equals_the_reference(weights):
  options = {'temperature': 2.0, 'threshold': 2.0, 'clip': 3.0, 'alpha': 0.1, 'warmup': 5}
  sync = syncs.edit(**options)
  expected = reference.Edit(SIZES, SHAPE[0], **options)
  rng, shared = np.random.default_rng(3), np.zeros(SIZE)
  with jax.enable_x64(True):
    reduce, memory = make_reduce(sync, weights), init(sync, to_tree(shared))
    for t in range(30):
      local = shared + rng.normal(size=SHAPE) * (30 if t % 11 == 9 else 1) * rng.uniform(0.5, 1)
      if t == 20:
        local[2] = np.nan
      agreed, memory = reduce(to_tree(local), to_tree(shared), memory)
      shared = expected(local, shared, weights)
      assert relative_error(to_vectors(agreed), shared) < 1e-5, t
  assert (expected.count < 30).all()  # Some were unusual.


@pytest.mark.parametrize('weights', [None, WEIGHTS], ids=['equal', 'weighted'])
def test_edit_of_nearest_neighbours_equals_the_reference(weights):
  """One worker lies far away, and at last with no numbers: then it does not count."""
  options = {'temperature': 2.0, 'threshold': np.inf, 'clip': 3.0, 'alpha': 0.1, 'warmup': 5}
  sync = syncs.of_neighbours(syncs.edit(**options), 1)
  expected = reference.Edit(SIZES, SHAPE[0], **options)
  rng, shared = np.random.default_rng(3), np.zeros(SIZE)
  with jax.enable_x64(True):
    reduce, memory = make_reduce(sync, weights), init(sync, to_tree(shared))
    for lie in (1.0, 1e3, np.nan):
      local = shared + rng.normal(size=SHAPE)
      local[3] *= lie
      agreed, memory = reduce(to_tree(local), to_tree(shared), memory)
      counted = np.ones(SHAPE[0]) if weights is None else weights.copy()
      counted *= np.isfinite(local).all(axis=1)
      there, (x, w, f) = counted > 0, reference.heads(shared - local, weights, 1)
      mixed = np.zeros(SHAPE)
      mixed[there] = reference.mixed(x, w, f)
      shared = expected(shared - mixed, shared, counted)
      assert relative_error(to_vectors(agreed), shared) < 1e-5, lie


@pytest.mark.parametrize('neighbours', [False, True], ids=['alone', 'neighbours'])
@pytest.mark.parametrize('name', RULES)
def test_a_second_moment_never_becomes_negative(name, neighbours):
  """Worker 3 says that its own, a million times as large, is negative: it is as if not finite."""
  sync = syncs.named.make_sync(name, 'nu', byzantine=1, neighbours=neighbours)
  local = jax.tree.map(lambda x: jnp.abs(x).at[3].mul(1e6), random_locals())
  said = [jax.tree.map(lambda x, y=y: x.at[3].mul(y), local) for y in (-1, np.nan)]
  (agreed, _), (expected, _) = (make_reduce(sync)(x, None, syncs.Memory()) for x in said)
  assert all((x >= 0).all() for x in jax.tree.leaves(agreed))
  assert bits_of(agreed) == bits_of(expected)


MEANS = {
  'trimmed_mean': syncs.trimmed_mean(0),
  'nearest neighbours': syncs.krum(0, neighbours=True),
  'edit': syncs.edit(temperature=np.inf, threshold=np.inf, clip=np.inf),
}


@pytest.mark.parametrize('name', MEANS)
def test_without_liars_it_is_the_mean_bit_for_bit(name):
  local, shared = random_locals(), jax.tree.map(lambda x: x[0], random_locals(1))
  expected, _ = make_reduce(syncs.mean())(local, shared, syncs.Memory())
  agreed, _ = make_reduce(MEANS[name])(local, shared, init(MEANS[name]))
  assert bits_of(agreed) == bits_of(expected)


EVERY = {
  name + (' of neighbours' if neighbours else ''): make(3, neighbours=neighbours)
  for name, (make, _, _) in RULES.items()
  for neighbours in (False, True)
} | {'edit': syncs.edit(), 'edit of neighbours': syncs.of_neighbours(syncs.edit(), 3)}


@pytest.mark.parametrize('name', EVERY)
def test_all_layouts_agree_and_no_nan_comes_through(name):
  """Worker 2 does not count; 5 lies, and 6 is not finite."""
  sync = EVERY[name]
  # XLA for CPUs ends the process where it is to compile an all-reduce of bfloat16 over devices.
  like = {n: x for n, x in TREE.items() if 'edit' not in name or n != 'half'}
  local, shared = random_locals(0, like, MANY), jax.tree.map(lambda x: x[0], random_locals(1, like))
  weights = jnp.array([1.0, 2.0, 0.0, 1.0, 1.0, 0.5, 3.0, 1.0])
  broken = jax.tree.map(lambda x: x.at[2].set(jnp.nan).at[5].mul(-100.0).at[6].set(jnp.inf), local)
  expected, memory = on_devices(sync, 1, 1, broken, shared, weights, like)
  assert all(
    np.abs(np.asarray(x, np.float32)).max(initial=0) < 9 for x in jax.tree.leaves(expected)
  )
  for rows, fsdp in [(8, 1), (2, 2)]:
    agreed, after = on_devices(sync, rows, fsdp, broken, shared, weights, like)
    for x in jax.tree.leaves(agreed):
      if x.is_fully_replicated:
        assert len({np.asarray(shard.data).tobytes() for shard in x.addressable_shards}) == 1
    close = lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-4, atol=1e-5
    )
    jax.tree.map(close, agreed, expected)
    jax.tree.map(close, after, memory)


@pytest.mark.parametrize('name', [name for name in EVERY if 'edit' not in name])
def test_bytes_are_those_of_a_ring_all_reduce(name):
  size = 2**20
  like = {'w': jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
  sent = sent_bytes(EVERY[name], like, workers=8)
  lengths = sent.pop('psum', 0)
  assert sent == {'all_to_all': 4 * size, 'all_gather': 4 * size // 8}
  assert lengths in (0, 4 * 8 * 9)


def test_half_of_the_workers_is_refused():
  with pytest.raises(ValueError, match='4 of 8 workers may lie.*byzantine from 0 to 3'):
    sent_bytes(syncs.krum(4), LIKE, workers=8)
  with pytest.raises(ValueError, match='byzantine is -1'):
    syncs.trimmed_mean(-1)
  with pytest.raises(ValueError, match='edit weighs differences from a reference'):
    sync = syncs.edit()
    make_reduce(sync)(random_locals(), None, init(sync))


def test_too_few_are_left_to_bear_as_many():
  """With 3 of 5 there, one of them may lie and not two: the median of three."""
  weights = np.array([1.0, 0.0, 1.0, 0.0, 1.0])
  local = random_locals()
  agreed, _ = make_reduce(syncs.trimmed_mean(2), weights)(local, None, syncs.Memory())
  expected = jax.tree.map(lambda x: jnp.median(x[::2], axis=0), local)
  assert bits_of(agreed) == bits_of(expected)


def test_who_was_away_counts_by_the_mean_of_its_intervals():
  """Worker 1 is there at every second sync, worker 2 at the first and the fifth."""
  sync, like = syncs.fedau(syncs.mean(), cutoff=3), {'w': jnp.zeros(1)}
  local, memory = {'w': jnp.arange(3.0)[:, None] ** 2}, init(sync, {'w': jnp.zeros(1)}, 3)
  present = [(1, 1, 1), (1, 0, 0), (1, 1, 0), (1, 0, 0), (1, 1, 1), (1, 1, 1)]
  # Intervals before each sync: worker 1's are 1, 2, 2, 1; worker 2's 1, 3 (cut off), 1.
  weights = [(1, 1, 1), (1, 0, 0), (1, 1, 0), (1, 0, 0), (1, 3 / 2, 2), (1, 5 / 3, 5 / 3)]
  for there, expected in zip(present, weights, strict=True):
    agreed, memory = make_reduce(sync, np.array(there, float))(local, None, memory)
    found = float(agreed['w'][0])
    assert found == pytest.approx((expected[1] + 4 * expected[2]) / sum(expected))
  assert jax.tree.structure(agreed) == jax.tree.structure(like)


def test_who_has_seen_half_counts_half():
  """K = 4. Worker 1 is away in the first two steps, and at the second sync, worker 2 never."""
  away = jnp.array([[1, 0, 1]] * 2 + [[1, 1, 1]] * 5 + [[1, 0, 1]], bool)
  tx = desloc(optax.sgd(1.0), {'params': 4}, syncs={'params': syncs.by_tokens(syncs.mean())})
  push = lambda t, worker, x: {'w': jnp.full(1, -1.0) * worker}
  run = workers.run(tx, {'w': jnp.zeros(1)}, push, 3, 8, extra=lambda t: {'active': away[t]})
  found = [float(params['w'][0]) for _, params in run]
  first = (0 * 4 + 4 * 2 + 8 * 4) / (4 + 2 + 4)  # Positions after four steps, by steps there.
  assert found[3] == pytest.approx(first)
  assert found[7] == pytest.approx(first + (0 * 4 + 8 * 4) / 8)


def test_with_all_workers_there_it_is_the_mean():
  local, sync = random_locals(), syncs.fedau(syncs.mean())
  memory = init(sync)
  for _ in range(3):
    agreed, memory = make_reduce(sync)(local, None, memory)
  expected, _ = make_reduce(syncs.mean())(local, None, syncs.Memory())
  assert bits_of(agreed) == bits_of(expected)
