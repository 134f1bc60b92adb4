"""Every method against the NumPy float64 reference, and the equivalences between methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from desloc_jax import ddp, desloc, synced
from desloc_jax.optimizer.inner import make_inner
from desloc_jax.optimizer.methods import make_method, METHODS, resolve_periods
from desloc_jax.optimizer.quasi_hyperbolic import scale_by_qh_adam, scale_by_qh_adopt
from desloc_jax.optimizer.worker_step.triggers import due_now
from tests import problems, workers
from tests.references import reference

WORKERS, STEPS, RATE, RHO, PERIOD = 3, 100, 0.02, 1.0, 4
NESTEROV = (0.7, 0.9)


def quadratic(size=7):
  return problems.quadratic(WORKERS, STEPS, size)


def rosenbrock():
  return problems.rosenbrock(WORKERS, STEPS)


PROBLEMS = {'quadratic': quadratic, 'rosenbrock': rosenbrock}
STEP = {
  'sgd': reference.sgd_step,
  'adam': functools.partial(reference.adam_step, b1=0.95, b2=0.95),
  'adopt': reference.adopt_step,
  'lion': reference.lion_step,
}
BOUND = reference.moment_bound(0.95, 0.95)
# method: (inner, periods of x, u and v, options of the reference, options of the config).
CASES = {
  'ddp': ('adam', None, {}, {}),
  'local_sgd': ('sgd', (4, None, None), {}, {'momentum': 0.0}),
  'local_adam': ('adam', (4, 4, 4), {}, {}),
  'favg_opt': ('adam', (4, None, None), {}, {}),
  'favg_reset': ('adopt', (4, None, None), {'reset': True}, {}),
  'diloco': ('adam', (4, None, None), {'outer': NESTEROV}, {}),
  'desloc': ('adam', (4, 12, 24), {'bound': BOUND}, {}),
  'desloc adopt': ('adopt', (4, 12, 24), {}, {}),
  'desloc lion': ('lion', (4, 12, None), {}, {}),
  'desloc_nesterov': ('adopt', (4, 12, 24), {'outer': NESTEROV}, {}),
}


def make(name, inner_name, **options):
  """Returns (tx, periods) of a method as the trainer makes it."""
  inner = make_inner(inner_name, RATE, clip_norm=RHO, **options)
  params = {'w': jax.ShapeDtypeStruct((3,), jnp.float64)}
  periods = resolve_periods(name, inner, params, {'params': PERIOD})
  outer = optax.sgd(NESTEROV[0], momentum=NESTEROV[1], nesterov=True)
  return inner, periods, outer


def assert_follows(tx, problem, expected_local, expected_consensus, **options):
  _, of_worker, x0 = problem
  trajectory = workers.run(tx, {'w': jnp.asarray(x0)}, of_worker, WORKERS, STEPS, **options)
  for t, (state, params) in enumerate(trajectory):
    np.testing.assert_allclose(params['w'], expected_consensus[t], rtol=1e-7, atol=1e-10)
    if expected_local is not None:
      np.testing.assert_allclose(state.params['w'], expected_local[t], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize('problem', PROBLEMS)
@pytest.mark.parametrize('case', CASES)
def test_method_follows_its_equations(case, problem):
  inner_name, periods, reference_options, options = CASES[case]
  problem = PROBLEMS[problem]()
  of_all, _, x0 = problem
  start, step = np.tile(x0, (WORKERS, 1)), functools.partial(STEP[inner_name], eta=RATE)
  with jax.enable_x64(True):
    inner, resolved, outer = make(case.split()[0], inner_name, **options)
    tx = make_method(case.split()[0], inner, resolved, outer=outer)
    if periods is None:
      assert_follows(tx, problem, None, reference.ddp(of_all, start, STEPS, step, rho=RHO))
    else:
      expected = reference.desloc(
        of_all, start, STEPS, periods, step, timing='post', rho=RHO, **reference_options
      )
      assert_follows(tx, problem, *expected)


def test_mt_dao_follows_its_equations():
  problem = quadratic()
  of_all, _, x0 = problem
  step = functools.partial(reference.qh_adam_step, eta=RATE)
  expected = reference.desloc(
    of_all, np.tile(x0, (WORKERS, 1)), STEPS, (4, 4, 4), step, timing='post', rho=RHO
  )
  with jax.enable_x64(True):
    inner = optax.chain(
      optax.clip_by_global_norm(RHO), scale_by_qh_adam(bias_correction=False), optax.scale(-RATE)
    )
    assert_follows(desloc(inner, {'params': 4, 'mu': 4, 'nu': 4}), problem, *expected)


@pytest.mark.parametrize('timing', ['post', 'pre'])
def test_stochastic_syncs_follow_their_coins(timing):
  problem = quadratic()
  of_all, _, x0 = problem
  periods, key = {'params': 4, 'mu': 6, 'nu': 10}, jax.random.key(3)
  zero = dict.fromkeys(periods, jnp.int32(0))
  coins = [
    [bool(x) for x in due_now(periods, zero, jnp.int32(t), key, 0, t).values()]
    for t in range(STEPS)
  ]
  shares = np.mean(coins, axis=0)
  np.testing.assert_allclose(shares, [1 / 4, 1 / 6, 1 / 10], atol=0.12)
  expected = reference.desloc(
    of_all, np.tile(x0, (WORKERS, 1)), STEPS, None, functools.partial(STEP['adam'], eta=RATE),
    timing=timing, rho=RHO, coins=coins, bound=BOUND,
  )  # fmt: skip
  with jax.enable_x64(True):
    inner, _, _ = make('desloc', 'adam')
    assert_follows(desloc(inner, periods, timing=timing, coin_key=key), problem, *expected)


@pytest.mark.parametrize('outer', [None, NESTEROV], ids=['averaging', 'nesterov'])
@pytest.mark.parametrize('reset', [False, True], ids=['keep', 'reset'])
def test_warm_up_averages_everything_and_hands_the_moments_over(outer, reset):
  problem = quadratic()
  of_all, _, x0 = problem
  expected = reference.desloc(
    of_all, np.tile(x0, (WORKERS, 1)), STEPS, (4, None, None),
    functools.partial(STEP['adam'], eta=RATE), timing='post', rho=RHO, outer=outer, reset=reset,
    warmup=12,
  )  # fmt: skip
  with jax.enable_x64(True):
    inner, _, nesterov = make('favg_opt', 'adam')
    tx = desloc(
      inner, {'params': 4, 'mu': None, 'nu': None}, outer=nesterov if outer else None,
      reset=('mu', 'nu') if reset else (), warmup_steps=12,
    )  # fmt: skip
    assert_follows(tx, problem, *expected)


def test_weights_and_active_workers():
  """Weights that change and workers that leave and come back, in the reference as zero weights."""
  problem = quadratic()
  of_all, _, x0 = problem
  rng = np.random.default_rng(2)
  weights = rng.uniform(0.5, 2.0, WORKERS)
  active = rng.uniform(size=(STEPS, WORKERS)) < 0.7
  active[~active.any(axis=1)] = True
  expected = reference.desloc(
    of_all, np.tile(x0, (WORKERS, 1)), STEPS, (4, 6, 10),
    functools.partial(STEP['adam'], eta=RATE), timing='post', rho=RHO, weights=weights * active,
    bound=BOUND,
  )  # fmt: skip
  with jax.enable_x64(True):
    inner, _, _ = make('desloc', 'adam')
    tx = desloc(inner, {'params': 4, 'mu': 6, 'nu': 10})
    extra = lambda t: {'weights': jnp.asarray(weights), 'active': jnp.asarray(active)[t]}
    of_worker = problem[1]
    trajectory = workers.run(tx, {'w': jnp.asarray(x0)}, of_worker, WORKERS, STEPS, extra=extra)
    for t, (state, _) in enumerate(trajectory):  # Shares are float32.
      np.testing.assert_allclose(state.params['w'], expected[0][t], rtol=1e-5, atol=1e-6)


def test_a_worker_that_does_not_count_cannot_poison_the_mean():
  tx = desloc(optax.sgd(0.1), {'params': 1})

  def gradient(t, worker, x):
    return {'w': jnp.where(worker == 1, jnp.nan, x['w'])}

  extra = lambda t: {'active': jnp.array([True, False, True])}
  *_, (state, params) = workers.run(tx, {'w': jnp.ones(2)}, gradient, 3, 1, extra=extra)
  np.testing.assert_allclose(params['w'], 0.9)
  np.testing.assert_allclose(state.params['w'], 0.9)  # It rejoins from the consensus.


def test_nothing_is_averaged_while_no_worker_counts():
  tx = desloc(optax.sgd(0.1), {'params': 2})
  pull = lambda t, worker, x: {'w': x['w'] - worker}
  extra = lambda t: {'active': jnp.full(2, t >= 3)}
  seen = list(workers.run(tx, {'w': jnp.ones(2)}, pull, 2, 4, extra=extra))
  assert [int(state.counters['params']) for state, _ in seen] == [1, 2, 3, 0]
  assert all(np.isfinite(params['w']).all() for _, params in seen)
  with pytest.raises(ValueError, match='no worker is active'):
    list(
      workers.run(tx, {'w': jnp.ones(2)}, pull, 2, 1, extra=lambda t: {'active': np.zeros(2, bool)})
    )
  with pytest.raises(ValueError, match='one entry for each of the 2 workers'):
    list(workers.run(tx, {'w': jnp.ones(2)}, pull, 2, 1, extra=lambda t: {'weights': np.ones(3)}))


def test_periods_may_grow():
  """A period of t + 1 steps: averages after steps 0, 2, 6, 14 (counters 1, 2, 4, 8 at the sync)."""
  tx = desloc(optax.sgd(0.1), {'params': lambda step: jnp.where(step < 1, 1, 2 ** (step // 4 + 1))})
  pull = lambda t, worker, x: {'w': x['w'] - worker}
  counters = [
    int(state.counters['params']) for state, _ in workers.run(tx, {'w': jnp.ones(2)}, pull, 2, 12)
  ]
  # Periods: 1 at step 0; 2 at steps 1-3; 4 at steps 4-7; 8 at steps 8-11.
  assert counters == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]


# Equivalences, in bits where the arithmetic is the same.


def run_method(tx, steps=24):
  _, of_worker, x0 = quadratic(101)
  *_, (state, params) = workers.run(
    tx, {'w': jnp.asarray(x0, jnp.float32)}, of_worker, WORKERS, steps
  )
  return np.asarray(state.params['w']), np.asarray(params['w'])


def assert_same(one, other):
  for a, b in zip(run_method(one), run_method(other), strict=True):
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_local_adam_is_desloc_with_equal_periods():
  inner, periods, _ = make('local_adam', 'adam')
  assert_same(
    make_method('local_adam', inner, periods), desloc(inner, {'params': 4, 'mu': 4, 'nu': 4})
  )


@pytest.mark.parametrize(
  ('method', 'plain'), [('diloco', 'favg_opt'), ('desloc_nesterov', 'desloc')]
)
def test_an_outer_sgd_of_rate_one_changes_nothing(method, plain):
  inner, periods, _ = make(method, 'adam')
  stepped = run_method(make_method(method, inner, periods, outer=optax.sgd(1.0)))
  averaged = run_method(make_method(plain, inner, periods))
  for a, b in zip(stepped, averaged, strict=True):  # x - (x - mean) rounds otherwise than mean.
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
  ('mixed', 'plain'),
  [
    (scale_by_qh_adam(b1=0.95, b2=0.99, w=1.0), optax.scale_by_adam(0.95, 0.99)),
    (scale_by_qh_adopt(b1=0.95, w=1.0), optax.contrib.scale_by_adopt(0.95)),
  ],
  ids=['adam', 'adopt'],
)
def test_quasi_hyperbolic_with_w_one_is_the_plain_optimizer(mixed, plain):
  periods = {'params': 4, 'mu': 4, 'nu': 4}
  one = run_method(desloc(optax.chain(mixed, optax.scale(-RATE)), periods))
  other = run_method(desloc(optax.chain(plain, optax.scale(-RATE)), periods))
  np.testing.assert_allclose(one[0], other[0], rtol=1e-6, atol=1e-7)


def test_a_coin_with_probability_one_is_a_period_of_one():
  inner, _, _ = make('desloc', 'adam')
  ones = {'params': 1, 'mu': 1, 'nu': 1}
  assert_same(desloc(inner, ones), desloc(inner, ones, coin_key=jax.random.key(0)))


def test_a_warm_up_of_the_whole_run_is_a_period_of_one():
  inner, _, _ = make('desloc', 'adam')
  assert_same(
    desloc(inner, {'params': 1, 'mu': 1, 'nu': 1}),
    desloc(inner, {'params': 50, 'mu': None, 'nu': 50}, warmup_steps=24),
  )


def test_methods_are_what_their_table_says():
  for name, method in METHODS.items():
    inner, periods, _ = make(name, 'adam')
    assert (
      periods
      == {
        'own': {'params': 4, 'mu': 12, 'nu': 24},
        'params': {'params': 4, 'mu': 4, 'nu': 4},
        'never': {'params': None if method.gradients else 4, 'mu': None, 'nu': None},
        'reset': {'params': 4, 'mu': None, 'nu': None},
      }[method.states]
    )


def test_reset_and_period_exclude_each_other():
  with pytest.raises(ValueError, match='mu cannot be both averaged and reset'):
    desloc(optax.adam(1.0), {'params': 1, 'mu': 1, 'nu': 1}, reset=('mu',))


def test_without_parameter_syncs_nothing_is_reset():
  inner, _, _ = make('desloc', 'adam')
  never = {'params': None, 'mu': None, 'nu': None}
  assert_same(desloc(inner, never, reset=('mu', 'nu')), desloc(inner, never))


def test_an_option_that_an_optimizer_does_not_take_is_refused():
  with pytest.raises(ValueError, match='inner.momentum is set, but adam takes b1'):
    make_inner('adam', 1.0, momentum=0.9)


def test_ddp_takes_weights():
  _, of_worker, x0 = quadratic()
  weights = jnp.array([1.0, 0.0, 0.0])
  *_, (_, params) = workers.run(
    ddp(optax.sgd(0.1)), {'w': jnp.asarray(x0, jnp.float32)}, of_worker, 3, 5,
    extra=lambda t: {'weights': weights},
  )  # fmt: skip
  first_only = lambda t, worker, x: of_worker(t, 0, x)
  *_, (_, alone) = workers.run(
    ddp(optax.sgd(0.1)), {'w': jnp.asarray(x0, jnp.float32)}, first_only, 1, 5
  )
  np.testing.assert_allclose(params['w'], alone['w'], rtol=1e-6)


@pytest.mark.parametrize('method', METHODS)
def test_while_nobody_is_active_the_consensus_stands_still(method):
  """And of DDP everything, which goes on as if those steps had not been."""
  _, of_worker, x0 = quadratic()
  inner, periods, outer = make(method, 'adam')
  tx = make_method(method, inner, periods, outer=outer)
  start = {'w': jnp.asarray(x0, jnp.float32)}
  away = lambda t: (t >= 3) & (t < 9)
  extra = lambda t: {'active': jnp.full(WORKERS, ~away(t))}
  seen = list(workers.run(tx, start, of_worker, WORKERS, 14, extra=extra))
  bits = lambda tree: [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
  before, counts = seen[2][0], []
  for t in range(3, 9):
    state, params = seen[t]
    assert bits(params) == bits(seen[2][1]) and bits(state.outer) == bits(before.outer)
    counts += [was for was in synced(seen[t - 1][0], state).values()]
  assert not any(counts)
  assert bits(seen[-1][1]) != bits(seen[2][1])
  if METHODS[method].gradients:
    stretched = lambda t, worker, x: of_worker(jnp.where(t < 3, t, t + 6), worker, x)
    *_, (state, params) = workers.run(tx, start, stretched, WORKERS, 8)
    assert bits((state.outer, params)) == bits((seen[-1][0].outer, seen[-1][1]))
