"""Who is suspect by what all workers report, and what a restart gives to a worker."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from desloc_jax import desloc, HealthCheck
from desloc_jax.optimizer.methods import inner_fields
from desloc_jax.optimizer.suspects import Reports, suspects
from tests import workers
from tests.optimizer.test_health import gradient, PARAMS

NEW = np.nan  # A worker without a past.


def found(distances, pasts, threshold=10.0, **changes):
  """Returns the suspect workers, from distances now and in the past, by `threshold`."""
  ones = np.ones(len(distances))
  reports = Reports(ones, ones, ones, np.log(distances), np.log(pasts))._replace(**changes)
  reports = Reports(*(jnp.asarray(x, jnp.float32) for x in reports))
  answer = suspects(HealthCheck(threshold=threshold), reports, jnp.bool_(True))
  return np.flatnonzero(answer).tolist()


@pytest.mark.filterwarnings('ignore:divide by zero')
@pytest.mark.parametrize(
  ('distances', 'pasts', 'expected'),
  [
    ([64, 64, 64, 64], [1, 1, 1, 1], []),  # The period of all has grown.
    ([1, 1, 1, 1], [999, 999, 999, 999], []),
    ([64, 640, 64, 64], [1, 9, 1, 1], []),  # Levels differ, all have changed alike.
    ([1, 4, 1, 1], [1, 1, 1, 1], []),  # Four times the noise.
    ([1, 11, 1, 1], [1, 1, 1, 1], [1]),
    ([64, 704, 64, 64], [1, 1, 1, 1], [1]),
    ([1, 1, 30, 20], [1, 1, 1, 1], [2, 3]),
    ([1, 1, 90, 1], [NEW] * 4, []),  # Of workers without a past less is asked.
    ([1, 1, 101, 1], [NEW] * 4, [2]),
    ([1, 1, 101, 1], [1, 1, 101, 1], [2]),  # Too far beside the others, whatever its past.
    ([1, 1, 1, 90], [1, 1, 1, NEW], []),
    ([1, 1, 0, 1], [1, 1, 1, 1], [2]),
    ([1, 1, 0, 1], [NEW] * 4, [2]),
    ([0, 0, 1, 1], [1, 1, 1, 1], [0, 1]),
    ([0, 0, 0, 1], [1, 1, 1, 1], []),  # A rate of zero: most do not move.
    ([0, 0, 0, 0], [1, 1, 1, 1], []),
    ([1e-4, 1, 1, 1], [1, 1, 1, 1], [0]),
    ([1e-4, 1e-4, 1e-4, 1e-4], [1, 1, 1, 1], []),
    ([1, 11], [1, 1], [1]),  # Of two it is the one that has changed.
    ([1, 0], [1, 1], [1]),
    ([64, 64], [1, 1], []),
    ([64], [1], []),
  ],
)
def test_a_worker_is_judged_by_its_past_beside_what_the_others_did(distances, pasts, expected):
  assert found(np.array(distances, float), np.array(pasts, float)) == expected


def test_who_does_not_count_is_neither_judged_nor_compared_with():
  past, none = np.ones(4), np.log(np.array([1, 11, 64, 64], float))
  assert found(np.ones(4), past, log_distance=none) == []
  assert found(np.ones(4), past, log_distance=none, weight=np.array([1, 1, 0, 0])) == [1]
  assert found(np.ones(4), past, log_distance=none, joined=np.array([1, 1, 0, 0])) == [1]
  broken = np.where(np.arange(4) > 1, np.nan, none)
  assert found(np.ones(4), past, log_distance=broken) == [1]


def test_who_was_not_where_the_sync_left_it_is_suspect_unless_all_are():
  assert found(np.ones(4), np.ones(4), follows=np.array([1, 0, 1, 1])) == [1]
  assert found(np.ones(4), np.ones(4), follows=np.zeros(4)) == []


def noisy(t, worker, x, factor, since, bad=2):
  """Gradients of which one worker's have `factor` times the noise from a step on."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), t), worker)
  scale = jnp.where((worker == bad) & (t >= since), factor, 1.0)
  return jax.tree.map(lambda v: v + 0.3 * scale * jax.random.normal(key, v.shape), x)


@pytest.mark.parametrize(('factor', 'restarts'), [(4.0, 0), (40.0, 1)])
def test_a_lasting_change_of_level_is_accepted(factor, restarts):
  params = {'w': jnp.zeros(50)}
  tx = desloc(optax.sgd(0.02), {'params': 4}, health=HealthCheck())
  grads = functools.partial(noisy, factor=factor, since=40)
  *_, (state, _) = workers.run(tx, params, grads, 4, 200)
  assert state.health.restarts.tolist() == [0, 0, restarts, 0]
  assert state.health.healthy.all()


@pytest.mark.parametrize('workers_', [2, 4])
@pytest.mark.parametrize('timing', ['post', 'pre'])
def test_other_periods_of_all_make_no_alarm(timing, workers_):
  """A warm-up, and then periods that grow to 64 steps and fall back to 1."""
  period = lambda step: jnp.where(step < 60, 1 + step, jnp.where(step < 250, 64, 1))
  tx = desloc(
    optax.sgd(0.01), {'params': period}, timing=timing, warmup_steps=30, health=HealthCheck()
  )
  *_, (state, _) = workers.run(tx, {'w': jnp.ones(50)}, gradient, workers_, 300)
  assert not state.health.restarts.any() and state.health.healthy.all()


@pytest.mark.parametrize('timing', ['post', 'pre'])
@pytest.mark.parametrize('back', [None, 5])
def test_a_worker_that_is_put_back_is_left_out_and_healed(timing, back):
  """For good at the parameters after step 9, or at every step at those of `back` steps ago."""
  tx = desloc(
    optax.adam(0.05), {'params': 3, 'mu': 6, 'nu': 12}, timing=timing, health=HealthCheck()
  )
  state, params = workers.init(tx, PARAMS, 4), PARAMS
  step, past = jax.jit(workers.make_step(tx, gradient, 4)), []
  for t in range(60):
    state, params = step(t, state, params)
    past.append(jax.tree.map(lambda x: x[1], state.params))
    if 9 < t < 40:
      old = past[t - back] if back else past[8]
      moved = jax.tree.map(lambda x, y: x.at[1].set(y), state.params, old)
      state = state._replace(params=moved)
      past[-1] = old
  restarts = state.health.restarts.tolist()
  assert restarts[1] >= 9 and sum(restarts) == restarts[1]
  assert state.health.healthy.all() and state.health.syncs[1] >= 5


@pytest.mark.parametrize('timing', ['post', 'pre'])
def test_a_worker_that_stands_still_is_left_out_at_its_first_sync(timing):
  tx = desloc(optax.sgd(0.05), {'params': 3}, timing=timing, health=HealthCheck())
  still = lambda t, m, x: jax.tree.map(lambda g: jnp.where(m == 1, 0.0, g), gradient(t, m, x))
  *_, (state, _) = workers.run(tx, PARAMS, still, 4, 7)
  assert state.health.restarts.tolist() == [0, 2, 0, 0]


def test_all_workers_that_step_at_every_sync_before_the_step_stay_healthy():
  """The gradient of a worker that restarts is dropped; that it stands still then is no fault."""
  tx = desloc(optax.sgd(0.05), {'params': 1}, timing='pre', health=HealthCheck())
  bad = lambda t, m, x: jax.tree.map(
    lambda g: jnp.where((m == 1) & (t == 5), jnp.nan, g), gradient(t, m, x)
  )
  *_, (state, _) = workers.run(tx, PARAMS, bad, 4, 20)
  assert state.health.restarts.tolist() == [0, 1, 0, 0] and state.health.healthy.all()


OPTIMIZERS = {
  'prodigy': (optax.contrib.prodigy, 1.0),
  'dog': (optax.contrib.dog, 1.0),
  'dadapt_adamw': (optax.contrib.dadapt_adamw, 1.0),
  'injected': (optax.inject_hyperparams(optax.adam), 0.05),
}


@pytest.mark.parametrize('timing', ['post', 'pre'])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_a_restart_heals_the_numbers_of_no_field_too(name, timing):
  make, rate = OPTIMIZERS[name]
  inner = make(rate)
  periods = {'params': 4} | dict.fromkeys(inner_fields(inner, PARAMS))
  tx = desloc(inner, periods, timing=timing, health=HealthCheck())
  bad = lambda t, m, x: jax.tree.map(
    lambda g: jnp.where((m == 1) & (t == 5), jnp.nan, g), gradient(t, m, x)
  )
  *_, (state, params) = workers.run(tx, PARAMS, bad, 3, 30)
  leaves = jax.tree.leaves((params, state.params, state.inner))
  assert all(np.isfinite(np.asarray(x)).all() for x in leaves)
  assert state.health.restarts.tolist() == [0, 1, 0] and state.health.healthy.all()
  counts = [x for x in jax.tree.leaves(state.inner) if jnp.issubdtype(x.dtype, jnp.integer)]
  assert all(len(set(np.asarray(x).tolist())) == 1 for x in counts)


def test_random_keys_are_kept_at_a_restart():
  inner = optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(3)), optax.sgd(0.05))
  tx = desloc(inner, {'params': 3}, health=HealthCheck())
  keys = []
  for factor in (1.0, jnp.nan):
    bad = functools.partial(noisy, factor=factor, since=1, bad=1)
    state, params = workers.init(tx, PARAMS, 3), PARAMS
    first, *rest = state.inner
    first = first._replace(rng_key=jax.random.split(jax.random.key(5), 3))
    state = state._replace(inner=(first, *rest))
    for t in range(3):
      state, params = workers.make_step(tx, bad, 3)(t, state, params)
    keys.append(jax.random.key_data(state.inner[0].rng_key).tolist())
  assert state.health.restarts.tolist() == [0, 1, 0]
  assert keys[0] == keys[1] and len(set(map(tuple, keys[0]))) == 3
