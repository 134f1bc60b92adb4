"""Who is away counts with what it sent last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from desloc_jax.optimizer import syncs
from tests.references import syncs_reference as reference
from tests.syncing import (
  bits_of,
  init,
  make_reduce,
  random_locals,
  relative_error,
  SHAPE,
  SIZE,
  to_tree,
  to_vectors,
)  # fmt: skip

# Of five workers who is there at each sync: one is away throughout, and one at first.
THERE = [(1, 1, 0, 1, 0), (1, 0, 0, 1, 1), (1, 1, 1, 1, 0), (0, 0, 0, 1, 0), (1, 1, 1, 1, 0)]


@pytest.mark.parametrize('beta', [0.0, 0.3, 1.0])
def test_it_equals_the_reference(beta):
  """Also where a worker that is away holds no numbers."""
  expected, sync = reference.FedStale(beta, SHAPE), syncs.fedstale(syncs.mean(), beta)
  rng, shared = np.random.default_rng(4), np.zeros(SIZE)
  with jax.enable_x64(True):
    memory = init(sync, to_tree(shared))
    for there in THERE:
      local = shared + rng.normal(size=SHAPE)
      weights = np.array(there, float)
      local[2] = np.nan if not there[2] else local[2]
      agreed, memory = make_reduce(sync, weights)(to_tree(local), to_tree(shared), memory)
      shared = expected(local, shared, weights)
      assert relative_error(to_vectors(agreed), shared) < 1e-6


@pytest.mark.parametrize('weights', [None, np.ones(5)], ids=['nobody asked', 'all there'])
@pytest.mark.parametrize('inner', [syncs.mean(), syncs.quantised(8)], ids=['mean', 'int8'])
def test_with_all_workers_there_it_is_its_sync_bit_for_bit(inner, weights):
  sync, shared = syncs.fedstale(inner), jax.tree.map(lambda x: x[0], random_locals(1))
  memory, plain = init(sync), init(inner)
  for t in range(2):
    local = random_locals(t)
    agreed, memory = make_reduce(sync, weights)(local, shared, memory)
    expected, plain = make_reduce(inner)(local, shared, plain)
    assert bits_of(agreed) == bits_of(expected)
  assert bits_of(memory.own['sync']) == bits_of(plain.own)


def test_what_is_remembered_takes_the_place_of_who_is_away():
  """X = 0. All send D = -1, -2, -3; then the third, which would send -9, is away: as if it sent -3."""
  sync, zero = syncs.fedstale(syncs.mean(), 1.0), {'w': jnp.zeros(1)}
  memory = init(sync, zero, 3)
  send = lambda x, there, memory: make_reduce(sync, there)(
    {'w': jnp.array(x)[:, None]}, zero, memory
  )
  agreed, memory = send([1.0, 2.0, 3.0], np.ones(3), memory)
  assert float(agreed['w'][0]) == 2
  agreed, _ = send([1.0, 2.0, 9.0], np.array([1.0, 1.0, 0.0]), memory)
  assert float(agreed['w'][0]) == pytest.approx(2)


def test_a_weight_of_the_past_beyond_one_is_refused():
  with pytest.raises(ValueError, match='beta is 1.5'):
    syncs.fedstale(syncs.mean(), 1.5)
