"""Workers that lie, and who bears it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from desloc_jax import desloc
from desloc_jax.optimizer import syncs
from tests import workers
from tests.syncing import bits_of, init, make_reduce, random_locals, to_vectors

WORKERS = 5


def sent(plan, local, shared, seed=0):
  """Returns the mean of what is said of D, as a vector."""
  sync = syncs.attacked(syncs.mean(), plan, seed)
  agreed, _ = make_reduce(sync)(local, shared, init(sync))
  return to_vectors(shared) - to_vectors(agreed)


def test_each_lie_is_what_its_equation_says():
  local, shared = random_locals(), jax.tree.map(lambda x: x[0], random_locals(1))
  d = to_vectors(shared) - to_vectors(local, 1)
  lies = {
    'flip': (None, lambda honest: -d[1]),
    'scale': (100.0, lambda honest: 100 * d[1]),
    'mimic': (None, lambda honest: d[0]),
    'alie': (2.0, lambda honest: honest.mean(axis=0) - 2 * honest.std(axis=0)),
  }
  honest = np.delete(d, 1, axis=0)
  for name, (strength, lie) in lies.items():
    expected = (honest.sum(axis=0) + lie(honest)) / WORKERS
    np.testing.assert_allclose(sent({1: (name, strength)}, local, shared), expected, atol=2e-5)
  noise = [sent({1: ('noise', 3.0)}, local, shared, seed) - d.mean(axis=0) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(noise[0], noise[1])
  assert not (noise[0] == noise[2]).all()
  rms = lambda x: np.sqrt((x**2).mean())
  assert rms(noise[0]) == pytest.approx(3 * rms(d[1]) / WORKERS, rel=0.2)


def test_two_lie_in_ways_of_their_own_and_the_first_honest_one_is_mimicked():
  local, shared = random_locals(), jax.tree.map(lambda x: x[0], random_locals(1))
  d = to_vectors(shared) - to_vectors(local, 1)
  found = sent({0: ('mimic', None), 3: ('flip', None)}, local, shared)
  expected = (d[1] + d[1] + d[2] - d[3] + d[4]) / WORKERS
  np.testing.assert_allclose(found, expected, atol=2e-5)
  # Nobody lies about what is dropped: the bits are those of the others.
  two = syncs.krum(2), syncs.attacked(syncs.krum(2), {0: ('scale', 1e6), 3: ('flip', None)})
  honest, lied = (make_reduce(sync)(local, shared, init(sync))[0] for sync in two)
  rows = [bits_of(jax.tree.map(lambda x, m=m: x[m], local)) for m in (1, 2, 4)]
  assert bits_of(honest) is not None and bits_of(lied) in rows


TARGET = {'w': jnp.linspace(-1.0, 1.0, 60).reshape(5, 12)}


def distance_after(make, attack, count=8, steps=60):
  """Distance from the target, over that at the start, after Adam with one of eight that lies."""

  def gradient(t, worker, x):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(worker), t), (5, 12))
    return {'w': x['w'] - TARGET['w'] + 0.2 * noise}

  periods = {'params': 3, 'mu': 6, 'nu': 9}
  chosen = {name: syncs.attacked(make(), {5: (attack, None)}, i) for i, name in enumerate(periods)}
  tx = desloc(optax.adam(optax.linear_schedule(0.1, 0.0, steps)), periods, syncs=chosen)
  start = jax.tree.map(jnp.zeros_like, TARGET)
  *_, (state, params) = workers.run(tx, start, gradient, count, steps)
  assert len({np.asarray(x).tobytes() for x in state.params['w']}) == 1
  return float(jnp.linalg.norm(params['w'] - TARGET['w']) / jnp.linalg.norm(TARGET['w']))


@pytest.mark.parametrize('attack', syncs.ATTACKS)
def test_one_of_eight_lies_about_everything_and_training_goes_on(attack):
  assert distance_after(lambda: syncs.trimmed_mean(1, neighbours=True), attack) < 0.15


def test_the_mean_does_not_bear_what_others_do():
  assert not distance_after(syncs.mean, 'scale') < 0.5
  assert distance_after(lambda: syncs.geometric_median(), 'scale') < 0.15
