"""SCAFFOLD and its compressed kin."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from desloc_jax import desloc
from desloc_jax.optimizer import syncs
from desloc_jax.optimizer.averaging import worker_share
from desloc_jax.optimizer.control_variates import control_variates
from desloc_jax.optimizer.syncs import MEMORY_AXES
from tests import workers
from tests.references import syncs_reference as reference
from tests.syncing import (
  bits_of,
  BLOCK,
  init,
  relative_error,
  SHAPE,
  SIZE,
  to_tree,
  to_vectors,
  WEIGHTS,
)  # fmt: skip

# Of four workers each pulls to a place of its own, and some harder.
PLACES, FORCES = np.array([-3.0, 0.5, 1.0, 4.0]), np.array([0.2, 1.0, 0.5, 3.0])
RATE, K = 0.1, 5


def pull(t, worker, x):
  return {'w': jnp.asarray(FORCES)[worker] * (x['w'] - jnp.asarray(PLACES)[worker])}


def scaffold(inner=None, **options):
  inner = optax.chain(control_variates(), inner or optax.sgd(RATE))
  return desloc(inner, {'params': K, 'control': K}, syncs={'control': syncs.control()}, **options)


def paper(rounds, there):
  """Algorithm 1 of SCAFFOLD, its second option, with a global rate of 1."""
  x, c, own = 0.0, 0.0, np.zeros(4)
  for r in range(rounds):
    counts = there(r)
    local = np.full(4, x)
    for _ in range(K):
      local = local - RATE * (FORCES * (local - PLACES) - own + c)
    new = np.where(counts, own - c + (x - local) / (K * RATE), own)
    x += (local - x)[counts].mean()
    c += (new - own)[counts].sum() / 4
    own = new
    yield x


@pytest.mark.parametrize('away', [False, True])
def test_it_is_the_algorithm_of_its_paper(away):
  """Worker 2 is away at every third sync."""
  there = lambda r: jnp.array([True, True, r % 3 != 1 if away else True, True])
  with jax.enable_x64(True):
    extra = {'extra': lambda t: {'active': there(t // K)}} if away else {}
    found = workers.run(scaffold(), {'w': jnp.zeros(1)}, pull, 4, 12 * K, **extra)
    found = [float(params['w'][0]) for _, params in found][K - 1 :: K]
  expected = list(paper(12, lambda r: np.array([True, True, r % 3 != 1 or not away, True])))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_it_finds_the_common_optimum_where_local_steps_do_not():
  optimum = (FORCES * PLACES).sum() / FORCES.sum()
  last = lambda tx: list(workers.run(tx, {'w': jnp.zeros(1)}, pull, 4, 80 * K))[-1][1]['w'][0]
  assert float(last(scaffold())) == pytest.approx(optimum, rel=1e-5)
  assert abs(float(last(desloc(optax.sgd(RATE), {'params': K}))) - optimum) > 0.1


@pytest.mark.parametrize('inner', [optax.sgd(RATE, 0.9), optax.adam(RATE)], ids=['sgd', 'adam'])
def test_with_equal_workers_it_is_local_training_bit_for_bit(inner):
  alike = lambda t, worker, x: {'w': jnp.sin(x['w'] + t)}
  never = dict.fromkeys(('trace', 'mu', 'nu'))
  fields = {'trace'} if 'trace' in str(inner.init({'w': jnp.ones(1)})) else {'mu', 'nu'}
  never = {name: None for name in never if name in fields}
  with_control = desloc(
    optax.chain(control_variates(), inner),
    {'params': K, 'control': 2 * K, **never},
    syncs={'control': syncs.control()},
  )
  plain = desloc(inner, {'params': K, **never})
  start = {'w': jnp.linspace(-1, 1, 7)}
  runs = [workers.run(tx, start, alike, 4, 25) for tx in (with_control, plain)]
  for (state, params), (of_plain, expected) in zip(*runs, strict=True):
    assert bits_of(params) == bits_of(expected)
    assert bits_of(state.params) == bits_of(of_plain.params)


class Reference:
  """v, d, c_m and c in vectors of [workers, n]."""

  def __init__(self, channel, alpha, beta):
    self.channel, self.alpha, self.beta = channel, alpha, beta
    self.v, self.own, self.c = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SIZE)

  def __call__(self, means, weights):
    counts = np.ones(len(means), bool) if weights is None else weights > 0
    self.v[counts] += self.beta * (means - self.v)[counts]
    news = np.where(counts[:, None], self.alpha * (self.v - self.own), 0)
    sent, agreed = self.channel(news, weights)
    self.own[counts] += sent[counts]
    self.c = self.c + counts.mean() * agreed
    return self.c - self.own


def whole(news, weights):
  return news, np.average(news, axis=0, weights=weights)


CASES = {
  'scaffold': (syncs.control(), whole, 1.0, 1.0),
  'scallion': (
    syncs.control(syncs.in_slices(syncs.uniform(4, BLOCK)), 0.5),
    reference.slices(reference.uniform(4), BLOCK),
    0.5,
    1.0,
  ),
  'scafcom': (
    syncs.control(syncs.to_everybody(syncs.largest(3, BLOCK)), 1.0, 0.3),
    reference.everybody(reference.largest(3, 2), BLOCK, senders_only=False),
    1.0,
    0.3,
  ),
}


@pytest.mark.parametrize('weights', [None, WEIGHTS], ids=['equal', 'weighted'])
@pytest.mark.parametrize('name', CASES)
def test_corrections_equal_the_reference(name, weights):
  sync, channel, alpha, beta = CASES[name]
  expected, rng, steps = Reference(channel, alpha, beta), np.random.default_rng(2), 3

  @functools.partial(
    jax.vmap, in_axes=(0, MEMORY_AXES), out_axes=(0, MEMORY_AXES), axis_name='workers'
  )
  def reduce(field, memory):
    share = None if weights is None else worker_share('workers', jnp.asarray(weights), None)
    context = syncs.Context('workers', share, jnp.int32(0), {'control': jnp.int32(steps)})
    return sync.reduce(field, None, memory, context)

  with jax.enable_x64(True):
    corrections = to_tree(np.zeros(SHAPE))
    memory = init(sync, (to_tree(np.zeros(SIZE)),) * 2)
    for _ in range(8):
      sums = rng.normal(size=SHAPE) + np.arange(5)[:, None]
      given = sums.copy()
      given[1] = sums[1] if weights is None else np.nan  # It does not count.
      (corrections, zeros), memory = jax.jit(reduce)((corrections, to_tree(given)), memory)
      assert relative_error(to_vectors(corrections, 1), expected(sums / steps, weights)) < 1e-5
      assert all(not x.any() for x in jax.tree.leaves(zeros))


def test_what_is_out_of_range_is_refused():
  with pytest.raises(ValueError, match='alpha is 0'):
    syncs.control(alpha=0)
  with pytest.raises(ValueError, match='gradients have signs'):
    syncs.control(syncs.in_slices(syncs.logarithmic(4)))
