"""Gossip over a hypercube."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import pytest

from desloc_jax.optimizer import syncs
from desloc_jax.optimizer.averaging import worker_share
from desloc_jax.optimizer.over_workers import AXIS_NAMES, over_workers
from desloc_jax.optimizer.syncs import MEMORY_AXES
from tests.syncing import bits_of, random_locals

WORKERS = 8
LIKE = {'b': jnp.zeros(7), 'w': jnp.zeros((5, 3)), 'half': jnp.zeros(4, jnp.bfloat16)}


@functools.cache  # What is compiled once is for all tests.
def one_round(devices, weighted):
  def of_worker(local, memory, weights):
    share = worker_share(AXIS_NAMES, weights, None) if weighted else None
    context = syncs.Context(AXIS_NAMES, share, jnp.int32(0))
    return syncs.gossip().reduce(local, None, memory, context)

  mesh = Mesh(np.array(jax.devices()[:devices]), ('workers',))
  return jax.jit(over_workers(of_worker, mesh, (0, MEMORY_AXES, None), (0, MEMORY_AXES)))


def rounds(count, local, weights=None, devices=1):
  """Returns the values of all workers after each of so many rounds."""
  memory, found = syncs.gossip().init(local), []
  for _ in range(count):
    local, memory = one_round(devices, weights is not None)(local, memory, weights)
    found.append(local)
  return found


def reference(local, weights, round_):
  """In NumPy: rows of [workers, n] meet in pairs."""
  after, bit = local.copy(), 2 ** (round_ % int(np.log2(len(local))))
  for m in range(len(local)):
    pair = [m, m ^ bit]
    if weights[pair].any():
      counted = [k for k in pair if weights[k] > 0]
      after[m] = np.average(local[counted], axis=0, weights=weights[counted])
  return after


@pytest.mark.parametrize('weights', [None, np.array([1, 0, 2, 1, 0, 0, 0.5, 4])])
def test_rounds_equal_the_reference(weights):
  with jax.enable_x64(True):
    local = np.random.default_rng(0).normal(size=(WORKERS, 6))
    every = np.ones(WORKERS) if weights is None else weights
    total = (every[:, None] * local).sum(axis=0)
    given = local.copy()
    given[every == 0] = np.nan  # Who does not count may hold anything.
    found = rounds(
      4, {'w': jnp.asarray(given)}, weights if weights is None else jnp.asarray(weights)
    )
    for t in range(4):
      local = reference(local, every, t)
      ours = np.asarray(found[t]['w'])
      if t == 0 and weights is not None:  # 4 and 5 are alone with each other: nobody counts.
        assert np.isnan(ours[[4, 5]]).all()
        ours = np.where(np.isnan(ours), local, ours)
      np.testing.assert_allclose(ours, local, rtol=1e-6)
      np.testing.assert_allclose((every[:, None] * local).sum(axis=0), total, rtol=1e-9)


def test_all_have_the_bits_of_one_mean_after_a_round_for_each_dimension():
  """Of whole numbers, whose sums are exact, those of `mean` too."""
  whole = jax.tree.map(lambda x: jnp.round(8 * x), random_locals(0, LIKE, WORKERS))
  for local, exact in ((whole, True), (random_locals(1, LIKE, WORKERS), False)):
    after = rounds(3, local)[-1]
    for x, first in zip(jax.tree.leaves(after), jax.tree.leaves(local), strict=True):
      assert len({row.tobytes() for row in np.asarray(x)}) == 1
      if exact:
        np.testing.assert_array_equal(
          np.asarray(x[0], np.float64), np.asarray(first, np.float64).mean(axis=0)
        )


def test_layouts_agree():
  """To the bit where all count the same; a division by other sums is not compiled alike."""
  local, weights = random_locals(1, LIKE, WORKERS), jnp.arange(1.0, 9.0)
  for devices in (2, 8):
    assert bits_of(rounds(4, local, None, devices)) == bits_of(rounds(4, local))
    close = lambda a, b: np.testing.assert_allclose(
      np.asarray(a, float), np.asarray(b, float), rtol=1e-2 if a.dtype == jnp.bfloat16 else 1e-5
    )
    jax.tree.map(close, rounds(4, local, weights, devices), rounds(4, local, weights))


def test_workers_that_are_no_hypercube_are_refused():
  with pytest.raises(ValueError, match='6 workers are not; expected a power of two, 4 or 8'):
    rounds(1, random_locals(0, LIKE, 6))
  local = random_locals(0, LIKE, 1)
  assert bits_of(rounds(1, local)[0]) == bits_of(local)
