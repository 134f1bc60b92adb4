"""Moments that are averaged at different steps, where one worker alone has a gradient."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from desloc_jax import desloc, WORKER_AXES
from desloc_jax.optimizer.inner import INNER_OPTIMIZERS, make_inner
from desloc_jax.optimizer.worker_step import moment_guard
from tests import workers

RATE = 0.01
PERIODS = {'params': 4, 'mu': 12, 'nu': 24}
EQUAL = dict.fromkeys(PERIODS, 4)
KEPT = PERIODS | {'mu': None, 'nu': None}
PARAMS = {'a': jnp.zeros((3, 4)), 'b': jnp.zeros(3)}
EMA = [(0.9, 0.999), (0.95, 0.9999), (0.95, 0.95)]


def rows_of_their_own(count, weak=0.0):
  """Returns a gradient of rows [count, 8]: a worker's of its own row, and `weak` times as much of the
  others."""

  def gradient(t, worker, x):
    mask = jnp.where(jnp.arange(count) == worker, 1.0, weak)[:, None]
    return jax.tree.map(lambda w: mask * (w - jnp.linspace(0.5, 1.5, 8)), x)

  return gradient


def largest(inner=None, periods=PERIODS, *, count=2, weak=0.0, steps=48, **options):
  """Returns the largest local parameter that a run meets, and at which the consensus ends."""
  tx = desloc(inner or optax.adam(RATE), periods, **options)
  params = {'rows': jnp.zeros((count, 8))}
  run = workers.run(tx, params, rows_of_their_own(count, weak), count, steps)
  sizes, consensus = zip(
    *((np.abs(s.params['rows']).max(), p['rows']) for s, p in run), strict=True
  )
  return max(sizes), consensus[-1]


@pytest.mark.parametrize('weak', [0.0, 1e-3])
@pytest.mark.parametrize('betas', EMA)
def test_rows_of_one_worker_alone_do_not_explode(betas, weak):
  inner = optax.adam(RATE, *betas)
  with_guard, found = largest(inner, weak=weak)
  local_adam, expected = largest(inner, EQUAL, weak=weak)
  without, _ = largest(inner, weak=weak, guard=False)
  assert without > 5 * local_adam  # The hazard; of rows without a gradient far more.
  assert with_guard < 1.5 * local_adam
  np.testing.assert_allclose(found, expected, rtol=0.4)


@pytest.mark.parametrize(
  'case',
  {
    'eight workers': {'count': 8},
    'pre': {'timing': 'pre'},
    'second moments never': {'periods': PERIODS | {'nu': None}},
    'coins': {'coin_key': jax.random.key(1)},
    'coins of equal periods': {
      'periods': dict.fromkeys(PERIODS, 12),
      'coin_key': jax.random.key(6),
    },
    'after a warm-up': {'warmup_steps': 3, 'periods': {'params': 4, 'mu': 6, 'nu': 30}},
    'bfloat16 moments': {'inner': optax.adam(RATE, mu_dtype=jnp.bfloat16)},
    'growing periods': {'periods': {'params': 4, 'mu': lambda t: 12, 'nu': lambda t: 24}},
  }.items(),
  ids=lambda case: case[0],
)
def test_other_ways_to_the_same_hazard(case):
  options = dict(case[1])
  bound = largest(periods=EQUAL, count=options.get('count', 2))[0]
  assert largest(**options)[0] < 4 * bound
  if case[0] != 'after a warm-up':
    assert largest(guard=False, **options)[0] > 100 * bound


def test_a_worker_that_was_away_keeps_its_second_moment():
  """The average of v alone, over others who have no gradient in its row."""
  own = rows_of_their_own(2)
  stops = lambda t, worker, x: jax.tree.map(
    lambda g: g * ((t < 6) | (worker == 1)), own(t, worker, x)
  )
  away = lambda t: {'active': jnp.stack([t < 6, t >= 0])}
  sizes = []
  for guard in (True, False):
    tx = desloc(optax.adam(RATE), {'params': 100, 'mu': None, 'nu': 8}, guard=guard)
    run = workers.run(tx, {'rows': jnp.zeros((2, 8))}, stops, 2, 12, extra=away)
    sizes.append(max(float(np.abs(state.params['rows']).max()) for state, _ in run))
  assert sizes[0] < 0.2 and sizes[1] > 100


def bits(tree):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def mild(t, worker, x):
  """A gradient of one size and random signs on all workers: no bound binds."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), t), worker)

  def of(w):
    sign = jnp.sign(jax.random.normal(key, w.shape)).astype(w.dtype)
    return sign * (1 + jnp.sin(w) / 20)

  return jax.tree.map(of, x)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('timing', ['post', 'pre'])
def test_no_bit_changes_where_no_bound_binds(timing, dtype):
  params = {'w': jnp.zeros(1000, dtype), 'b': jnp.zeros((), dtype)}
  runs = [
    workers.run(
      desloc(optax.adam(0.05), {'params': 2, 'mu': 3, 'nu': 4}, timing=timing, guard=guard),
      params, mild, 4, 13,
    )
    for guard in (True, False)
  ]  # fmt: skip
  for guarded, plain in zip(*runs, strict=True):
    assert bits(guarded) == bits(plain)


def test_over_devices():
  """Manual over 4 workers: no bit where no bound binds, and no explosion."""
  mesh = jax.make_mesh((4, 2), ('workers', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def last(gradient, params, guard, steps):
    tx = desloc(optax.adam(0.05), {'params': 2, 'mu': 3, 'nu': 40}, guard=guard)
    state = workers.init(tx, params, 4)
    step = jax.jit(workers.make_manual_step(tx, gradient, mesh))
    with jax.set_mesh(mesh):
      for t in range(steps):
        state, params = step(jnp.int32(t), state, params)
    return state, params

  guarded, plain = (last(mild, {'w': jnp.zeros(1000)}, guard, 9) for guard in (True, False))
  assert bits(guarded) == bits(plain)
  rows, gradient = {'rows': jnp.zeros((4, 8))}, rows_of_their_own(4)
  guarded, plain = (last(gradient, rows, guard, 9)[1]['rows'] for guard in (True, False))
  assert np.abs(guarded).max() < 1 and np.abs(plain).max() > 100


def test_nothing_binds_in_local_adam():
  """By the mathematics: rows of one worker and all betas; the guard is forced by coins of one."""
  for betas in EMA:
    inner, ones = optax.adam(RATE, *betas), dict.fromkeys(PERIODS, 1)
    runs = [
      workers.run(
        desloc(inner, ones, coin_key=jax.random.key(0), guard=guard),
        {'rows': jnp.zeros((3, 8))}, rows_of_their_own(3), 3, 20,
      )
      for guard in (True, False)
    ]  # fmt: skip
    for guarded, plain in zip(*runs, strict=True):
      assert bits(guarded) == bits(plain)


def test_local_steps_keep_the_bound_and_an_adversary_reaches_it():
  """Gradients that grow by b2 / b1 a step reach c, none exceeds it."""
  b1, b2 = 0.9, 0.99
  c = (1 - b1) / np.sqrt((1 - b2) * (1 - b1**2 / b2))
  u = v = 0.0
  for t in range(200):
    g = (b1 / b2) ** (200 - t)
    u, v = b1 * u + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    assert u <= c * np.sqrt(v) * (1 + 1e-12)
  assert u > 0.999 * c * np.sqrt(v)


def bounds_of(inner, params=PARAMS, **periods):
  periods = {'params': 4, 'mu': 12, 'nu': 24, 'm1': 12, 'm2': 24, 'trace': 12} | periods
  return moment_guard.find_bounds(inner, inner.init(params), params, periods)


def factors(inner, *args, **periods):
  """Returns c by the two fields, each value once."""
  found = bounds_of(inner, *args, **periods)
  return {names: sorted({round(b.c / 1.01, 2) for b in of}) for names, of in found.items()}


ADAM = {('mu', 'nu'): [7.27]}
FOUND = {
  'adamw': (optax.adamw(RATE), ADAM),
  'nadamw': (optax.nadamw(RATE), ADAM),
  'amsgrad': (optax.amsgrad(RATE), ADAM),
  'clipped': (optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(RATE)), ADAM),
  'scaled, with l2': (
    optax.chain(optax.scale(0.1), optax.add_decayed_weights(0.1), optax.adam(RATE)),
    ADAM,
  ),
  'bfloat16': (optax.adam(RATE, mu_dtype=jnp.bfloat16), ADAM),
  'masked': (optax.masked(optax.adam(RATE), {'a': True, 'b': False}), ADAM),
  'flattened': (optax.flatten(optax.adam(RATE)), ADAM),
  'if finite': (optax.apply_if_finite(optax.adam(RATE), 3), ADAM),
  'scheduled rate': (optax.adam(optax.linear_schedule(RATE, 0.0, 9)), ADAM),
  'injected rate': (
    optax.inject_hyperparams(optax.adam, static_args=('b1', 'b2'))(RATE),
    ADAM,
  ),
  'partition': (
    optax.partition(
      {'x': optax.adam(RATE), 'y': optax.adam(RATE, 0.95, 0.9999)}, {'a': 'x', 'b': 'y'}
    ),
    {('mu', 'nu'): [7.27, 16.02]},
  ),
  'adabelief': (optax.adabelief(RATE), {}),
  'yogi': (optax.yogi(RATE), {}),
  'adamax': (optax.adamax(RATE), {}),
  'novograd': (optax.novograd(RATE), {}),
  'adafactor': (optax.adafactor(RATE), {}),
}
OF_NAMES = {
  'adam': {('mu', 'nu'): [1.0]},
  'adamw': {('mu', 'nu'): [1.0]},
  'qh_adam': {('mu', 'nu'): [1.0]},
  'ademamix': {('m1', 'nu'): [7.27]},
  'muon': {('mu', 'nu'): [1.16]},
}


@pytest.mark.parametrize('name', FOUND)
def test_the_bounds_of_any_inner_are_found(name):
  inner, expected = FOUND[name]
  if name in ('adafactor', 'adamax', 'novograd'):  # Their fields have other names.
    names = {label for label in _fields(inner)}
    assert bounds_of(inner, **dict.fromkeys(names, 12)) == {}
  else:
    assert factors(inner) == expected


def _fields(inner):
  from desloc_jax.optimizer.methods import inner_fields

  return inner_fields(inner, PARAMS)


@pytest.mark.parametrize('name', INNER_OPTIMIZERS)
def test_the_bounds_of_the_inner_optimizers_by_name(name):
  """ADOPT divides before its first moment: such a bound would be wrong for it."""
  inner = make_inner(name, RATE, clip_norm=1.0, weight_decay=0.1)
  assert factors(inner) == OF_NAMES.get(name, {})


@pytest.mark.parametrize(
  ('inner', 'reason'),
  [
    (optax.inject_hyperparams(optax.adam)(RATE), 'their decays change'),
    (
      optax.inject_hyperparams(optax.adam)(RATE, b1=lambda count: 0.9 + 0.05 * (count > 99)),
      'their decays change',
    ),
    (optax.adam(RATE, 0.999, 0.95), 'b1^2 >= b2'),
  ],
)
def test_moments_without_a_constant_bound_are_named(inner, reason):
  with pytest.warns(UserWarning, match=f'mu and nu are averaged.*{re.escape(reason)}'):
    assert bounds_of(inner) == {}


def test_an_inner_that_cannot_be_tried_is_named():
  def update(updates, state, params=None):
    raise RuntimeError

  with pytest.warns(UserWarning, match='updates of small arrays fail'):
    assert bounds_of(optax.adam(RATE)._replace(update=update)) == {}


def test_equal_periods_need_no_look_at_the_inner_optimizer():
  def fail(*args):
    raise AssertionError('looked at')

  inner = optax.adam(RATE)
  state = inner.init(PARAMS)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for periods in (EQUAL, KEPT):
      silent = inner._replace(update=fail)
      assert moment_guard.find_bounds(silent, state, PARAMS, periods) == {}


def test_the_guard_sends_nothing_and_adds_no_state():
  tx, plain = (desloc(optax.adam(RATE), PERIODS, guard=guard) for guard in (True, False))
  assert jax.tree.structure(tx.init(PARAMS)) == jax.tree.structure(plain.init(PARAMS))

  def exchanges(tx):
    state = jax.eval_shape(lambda: workers.init(tx, PARAMS, 2))
    update = jax.vmap(
      tx.update, in_axes=(0, WORKER_AXES, None), out_axes=(None, WORKER_AXES),
      axis_name='workers', spmd_axis_name='workers',
    )  # fmt: skip
    grads = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), PARAMS)
    return str(jax.make_jaxpr(update)(grads, state, PARAMS)).count('psum')

  assert exchanges(tx) == exchanges(plain)
