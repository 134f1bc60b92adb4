"""Workers that break down, run away, leave and return: who counts, and from where they go on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from desloc_jax import desloc, HealthCheck, transform_ledger
from tests import workers
from tests.runs import same_bits

PERIODS = {'params': 3, 'mu': 6, 'nu': 12}
PARAMS = {'w': jnp.linspace(-1.0, 1.0, 6), 'b': jnp.ones(())}
CHECK = HealthCheck(warmup_syncs=4)


def gradient(t, worker, x):
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), t), worker)
  return jax.tree.map(lambda v: v + 0.3 * jax.random.normal(key, v.shape), x)


def broken(at, worker, factor=jnp.nan):
  """Gradients of which one worker's are multiplied by `factor` at one step."""

  def of(t, m, x):
    bad = (t == at) & (m == worker)
    return jax.tree.map(lambda g: jnp.where(bad, g * factor, g), gradient(t, m, x))

  return of


def transform(periods=PERIODS, inner=None, **options):
  return desloc(inner or optax.adam(0.05), periods, health=CHECK, **options)


def moments(state, name='mu'):
  return getattr(state.inner[0], name)


# Before the step without a warm-up the bits are the same too, but not as the tests' flags compile.
@pytest.mark.parametrize(('timing', 'warmup_steps'), [('post', 0), ('post', 8), ('pre', 8)])
def test_healthy_workers_are_averaged_as_without_a_check(timing, warmup_steps):
  options = {'timing': timing, 'warmup_steps': warmup_steps}
  transforms = desloc(optax.adam(0.05), PERIODS, **options), transform(**options)
  plain, checked = (
    list(workers.run(tx, PARAMS, gradient, 4, 24, workers.jit_as_users)) for tx in transforms
  )
  for (a, x), (b, y) in zip(plain, checked, strict=True):
    assert same_bits((x, a.params, a.inner), (y, b.params, b.inner))
  assert checked[-1][0].health.healthy.all() and not checked[-1][0].health.restarts.any()


def test_distances_in_float16_are_not_those_of_an_overflow():
  """Else one that is a little farther than the others, at 70,000, would be infinitely far."""
  start = {'w': jnp.full(1, -30_000, jnp.float16)}
  moves = jnp.array([-20_000, -20_000, -20_000, -24_000], jnp.float16)
  away = lambda t, m, x: jax.tree.map(lambda v: jnp.full_like(v, moves[m]), x)
  tx = transform({'params': 3}, optax.sgd(1.0))
  *_, (state, _) = workers.run(tx, start, away, 4, 3)
  assert state.health.healthy.all() and not state.health.restarts.any()


@pytest.mark.parametrize('timing', ['post', 'pre'])
@pytest.mark.parametrize('broken_worker', [0, 3])
def test_the_mean_is_that_of_a_run_without_the_broken_worker(timing, broken_worker):
  others = jnp.array([m for m in range(4) if m != broken_worker])
  tx, last = transform(timing=timing), 3 if timing == 'pre' else 2
  *_, (state, params) = workers.run(tx, PARAMS, broken(1, broken_worker), 4, last + 1)
  without = lambda t, m, x: gradient(t, others[m], x)
  *_, (expected, expected_params) = workers.run(tx, PARAMS, without, 3, last + 1)
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6)
  jax.tree.map(close, params, expected_params)
  assert state.health.restarts.tolist() == [int(m == broken_worker) for m in range(4)]
  own = lambda tree, rows: jax.tree.map(lambda x: x[rows], tree)
  assert same_bits(own(state.params, broken_worker), params)
  jax.tree.map(close, own((state.params, state.inner), others), (expected.params, expected.inner))
  if timing == 'post':
    for name in ('mu', 'nu'):
      mean = jax.tree.map(lambda x: x.mean(axis=0), moments(expected, name))
      jax.tree.map(close, own(moments(state, name), broken_worker), mean)


def test_a_restarted_worker_goes_on_and_counts_again():
  states = list(workers.run(transform(), PARAMS, broken(4, 1), 4, 24))
  state, params = states[-1]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, params)))
  assert state.health.restarts.tolist() == [0, 1, 0, 0] and state.health.healthy.all()
  assert not states[5][0].health.healthy[1] and states[8][0].health.healthy.all()


def test_moments_that_stay_local_are_averaged_for_a_restart_only():
  periods = {'params': 3, 'mu': None, 'nu': None}
  states = list(workers.run(transform(periods), PARAMS, broken(4, 2), 4, 9))
  state, _ = states[5]
  own = np.asarray(moments(state)['w'])
  np.testing.assert_allclose(own[2], own[[0, 1, 3]].mean(axis=0), rtol=1e-6)
  assert not np.allclose(own[0], own[1])
  assert state.counters['restarts'] == 0 and states[8][0].counters['restarts'] == 3


def test_a_moment_sync_between_parameter_syncs_leaves_out_what_is_not_finite():
  periods = {'params': 6, 'mu': 2, 'nu': None}
  states = list(workers.run(transform(periods), PARAMS, broken(2, 0), 4, 4))
  state, params = states[-1]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, moments(state))))
  assert not np.isfinite(state.params['w'][0]).any()  # Until the next parameter sync.


def test_a_worker_that_runs_away_is_left_out():
  """SGD, so that a step can be large; a hundred times the others' distance is too far at once."""
  make = lambda: transform({'params': 3}, optax.sgd(0.05))
  *_, (state, params) = workers.run(make(), PARAMS, broken(19, 3, factor=1e4), 4, 21)
  assert state.health.restarts.tolist() == [0, 0, 0, 1]
  assert np.abs(params['w']).max() < 2
  *_, (state, params) = workers.run(make(), PARAMS, broken(4, 3, factor=1e4), 4, 6)
  assert state.health.restarts.tolist() == [0, 0, 0, 1] and np.abs(params['w']).max() < 2


def test_an_infinite_threshold_looks_at_finiteness_only():
  check = HealthCheck(threshold=float('inf'))
  tx = desloc(optax.sgd(0.05), {'params': 3}, health=check)
  *_, (state, params) = workers.run(tx, PARAMS, broken(19, 3, factor=1e4), 4, 21)
  assert state.health.restarts.sum() == 0 and np.abs(params['w']).max() > 10


def test_without_a_healthy_worker_nothing_is_averaged():
  everyone = lambda t, m, x: jax.tree.map(
    lambda g: jnp.where(t == 4, jnp.nan, g), gradient(t, m, x)
  )
  states = list(workers.run(transform(), PARAMS, everyone, 4, 12))
  state, params = states[-1]
  assert same_bits(params, states[4][1]) and np.isfinite(params['w']).all()
  assert not state.health.healthy.any() and state.counters['params'] == 9


def test_a_loss_that_is_not_finite_counts_too():
  tx = transform()
  state = workers.init(tx, PARAMS, 2)
  step = jax.vmap(
    lambda value, state, params: tx.update(jax.tree.map(jnp.zeros_like, params), state, params, value=value),
    in_axes=(0, workers.WORKER_AXES, None), out_axes=(None, workers.WORKER_AXES), axis_name='workers',
  )  # fmt: skip
  for _ in range(3):
    _, state = step(jnp.array([1.0, jnp.inf]), state, PARAMS)
  assert state.health.healthy.tolist() == [True, False]


def away(worker, start, stop):
  def active(t):
    return {'active': ~((jnp.arange(4) == worker) & (start <= t) & (t < stop))}

  return active


def test_a_worker_that_was_away_joins_at_the_next_sync_and_counts_from_the_one_after():
  periods = {'params': 3, 'mu': None, 'nu': None}
  tx, at = transform(periods), away(1, 4, 7)
  states = list(workers.run(tx, PARAMS, gradient, 4, 12, extra=at))
  for t in (5, 8):  # Away at the first; there again, but not all the time, at the second.
    state, params = states[t]
    assert state.health.joined.tolist() == [True, t == 8, True, True]
  own = np.asarray(moments(states[8][0])['w'])
  np.testing.assert_allclose(own[1], own[[0, 2, 3]].mean(axis=0), rtol=1e-6)
  assert states[8][0].health.restarts.sum() == 0  # It was well.
  # Until step 8 nothing that worker 1 did since step 3 has gone into the consensus.
  other = lambda t, m, x: jax.tree.map(
    lambda g: jnp.where((m == 1) & (t >= 3) & (t < 9), 7.0, g), gradient(t, m, x)
  )
  changed = list(workers.run(tx, PARAMS, other, 4, 12, extra=at))
  assert same_bits(states[8][1], changed[8][1])
  assert same_bits(states[11][1], changed[11][1])  # Its restart left no trace of it.


@pytest.mark.parametrize('timing', ['post', 'pre'])
def test_who_was_away_joins_without_a_check_too(timing):
  """And where nobody is judged, one that is not finite counts."""
  transforms = [
    desloc(optax.adam(0.05), PERIODS, timing=timing, health=HealthCheck(threshold=threshold))
    for threshold in (10.0, None)
  ]
  checked, plain = (
    list(workers.run(tx, PARAMS, gradient, 4, 12, workers.jit_as_users, extra=away(1, 4, 7)))
    for tx in transforms
  )
  for (a, x), (b, y) in zip(checked, plain, strict=True):
    assert same_bits((x, a.params, a.inner), (y, b.params, b.inner))
  *_, (_, params) = workers.run(transforms[1], PARAMS, broken(4, 1), 4, 12)
  assert jnp.isnan(params['w']).all()


def test_workers_that_were_all_away_begin_again():
  nobody = lambda t: {'active': jnp.full(4, (t < 3) | (t >= 7))}
  states = list(workers.run(transform(), PARAMS, gradient, 4, 9, extra=nobody))
  assert [int(state.counters['params']) for state, _ in states] == [1, 2, 0, 1, 2, 3, 4, 0, 1]


def test_what_the_check_sends_is_in_the_ledger():
  named = PERIODS | {'health': 3, 'restarts': None}
  ledger = transform_ledger(transform(), PARAMS, named, 4)
  size = 4 * 7
  assert ledger.bytes_per_sync == dict.fromkeys(PERIODS, size) | {
    'health': 4 * 20,  # Five numbers of each worker.
    'restarts': 2 * size + 4,  # And Adam's count.
  }


def test_types_of_varying_axes_are_right():
  mesh = jax.make_mesh((4,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))
  tx = transform()
  state, params = workers.init(tx, PARAMS, 4), PARAMS
  step = jax.jit(workers.make_manual_step(tx, broken(4, 2), mesh))
  expected = list(workers.run(tx, PARAMS, broken(4, 2), 4, 9))[-1]
  for t in range(9):
    state, params = step(t, state, params)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), (state, params), expected)


@pytest.mark.parametrize(
  'options',
  [{'threshold': 1.0}, {'threshold': float('nan')}, {'decay': 1.0}, {'warmup_syncs': -1}],
)
def test_thresholds_out_of_range_are_refused(options):
  with pytest.raises(ValueError, match='expected threshold > 1'):
    HealthCheck(**options)


def test_a_check_without_parameter_syncs_is_refused():
  with pytest.raises(ValueError, match='needs a period for params'):
    transform({'params': None, 'mu': 1, 'nu': 1})


@pytest.mark.parametrize('timing', ['post', 'pre'])
def test_it_works_with_64_bits(timing):
  """As with JAX_ENABLE_X64=1: parameters of float32, beside defaults of float64."""
  with jax.enable_x64(True):
    tx = transform(timing=timing)
    *_, (state, params) = workers.run(tx, PARAMS, broken(4, 1), 4, 12)
    assert params['w'].dtype == state.health.mean.dtype == jnp.float32
    assert state.health.restarts.tolist() == [0, 1, 0, 0]


def test_the_counts_of_a_worker_that_came_back_are_those_of_the_others():
  """Before the step too, where the gradient of a worker that restarts is dropped."""
  tx = transform(timing='pre')
  *_, (state, _) = workers.run(tx, PARAMS, gradient, 4, 12, extra=away(1, 4, 7))
  assert state.inner[0].count.tolist() == [12] * 4
