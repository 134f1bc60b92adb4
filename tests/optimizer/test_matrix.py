"""One matrix for every inner optimizer under every method, after optax's own common tests."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import optax
import pytest

from desloc_jax import transform_ledger, WORKER_AXES
from desloc_jax.optimizer.inner import INNER_OPTIMIZERS, make_inner
from desloc_jax.optimizer.methods import make_method, METHODS, resolve_periods
from tests import workers

WORKERS, PERIOD, STEPS = 2, 3, 90
TARGET = {'kernel': jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), 'bias': jnp.array([0.5, -0.5])}
RATES = {'sgd': 0.05, 'lion': 0.02, 'muon': 0.05, 'qh_adam': 0.1, 'qh_adopt': 0.1, 'adopt': 0.1}
# adamw is adam: once is enough.
INNERS = [name for name in INNER_OPTIMIZERS if name != 'adamw']


def make(method, inner_name, dtype=jnp.float32):
  """Returns (tx, periods, params at zero)."""
  params = jax.tree.map(lambda x: jnp.zeros_like(x, dtype), TARGET)
  rate = RATES.get(inner_name, 0.05)
  # To zero, as any run would: sign-like steps of a constant size cannot settle.
  # The slow moments of the quasi-hyperbolic ones outlive 90 steps: here a half-life of 7 does.
  options = {'b1': 0.9} if inner_name.startswith('qh') else {}
  inner = make_inner(inner_name, optax.linear_schedule(rate, 0.0, STEPS), **options)
  periods = resolve_periods(method, inner, params, {'params': PERIOD})
  outer = optax.sgd(0.7, momentum=0.5, nesterov=True)
  return make_method(method, inner, periods, outer=outer), periods, params


def gradient(t, worker, x):
  """Of a parabola; the workers pull to both sides of the target."""
  side = 0.1 * (2 * worker - 1)
  return jax.tree.map(lambda p, goal: p - (goal + side).astype(p.dtype), x, TARGET)


def distance(params):
  return float(optax.tree.norm(optax.tree.sub(params, TARGET)) / optax.tree.norm(TARGET))


def signature(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def kinds():
  """Methods that differ in more than the values of options."""
  kind = lambda method: (method.states, method.outer, method.gradients, bool(method.inner))
  return {kind(method): name for name, method in reversed(METHODS.items())}.values()


@pytest.mark.parametrize('method', kinds())
@pytest.mark.parametrize('inner_name', INNERS)
def test_every_inner_under_every_method(inner_name, method):
  """Converges under scan; keeps structure and dtypes; sends what the method's row says."""
  tx, periods, params = make(method, inner_name)
  state = workers.init(tx, params, WORKERS)
  abstract = jax.eval_shape(lambda: workers.init(tx, params, WORKERS))
  assert signature(abstract) == signature(state)
  step = workers.make_step(tx, gradient, WORKERS)

  @jax.jit
  def run(state, params):
    body = lambda carry, t: (step(t, *carry), None)
    return jax.lax.scan(body, (state, params), jnp.arange(STEPS))[0]

  after, found = run(state, params)
  assert signature(after) == signature(state) and signature(found) == signature(params)
  assert distance(found) < 0.35 * distance(params), distance(found)

  ledger = transform_ledger(tx, params, periods, WORKERS)
  size = sum(x.nbytes for x in jax.tree.leaves(params))
  if METHODS[method].gradients:
    assert ledger.bytes_per_sync == {'gradients': size}
  else:
    averaged = [name for name, period in periods.items() if period is not None]
    assert sorted(ledger.bytes_per_sync) == sorted(averaged)
    # Under muon only what is no matrix has a second moment.
    assert all(b == size or inner_name == 'muon' for b in ledger.bytes_per_sync.values())
    assert ledger.bytes_per_sync['params'] == size


@pytest.mark.parametrize('inner_name', INNERS)
def test_dtypes_are_kept(inner_name):
  """bfloat16 parameters: parameters, updates and consensus stay so; nothing recompiles."""
  tx, _, params = make('desloc_nesterov', inner_name, jnp.bfloat16)
  state = workers.init(tx, params, WORKERS)
  before = signature(state)
  step = jax.jit(workers.make_step(tx, gradient, WORKERS))
  for t in range(2 * PERIOD):
    state, params = step(jnp.int32(t), state, params)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}
  assert signature(state) == before
  assert step._cache_size() == 1


def test_float32_moments_of_bfloat16_parameters():
  params = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.bfloat16), TARGET)
  inner = optax.adam(0.05, mu_dtype=jnp.float32)
  periods = {'params': 2, 'mu': 2, 'nu': 2}
  tx = make_method('local_adam', inner, periods)
  *_, (state, found) = workers.run(tx, params, gradient, WORKERS, 4)
  assert state.inner[0].mu['bias'].dtype == jnp.float32
  assert state.params['bias'].dtype == found['bias'].dtype == jnp.bfloat16


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit], ids=['auto', 'explicit'])
@pytest.mark.parametrize('inner_name', ['sgd', 'adam', 'adopt', 'lion'])
def test_shardings_are_unchanged_by_update(inner_name, axis_type):
  """Manual over 2 workers; their matrices, and all that has that shape, are split over 4 devices."""
  types = (AxisType.Auto, axis_type)
  mesh = jax.make_mesh((2, 4), ('workers', 'fsdp'), axis_types=types)
  tx, _, params = make('desloc', inner_name)

  def place(axis, tree):
    def one(x):
      spec = [None] * x.ndim
      if axis == 0:
        spec[0] = 'workers'
      if x.shape[-2:] == (3, 4):
        spec[-1] = 'fsdp'
      return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(one, tree)

  state = workers.init(tx, params, WORKERS)
  state = jax.tree.map(place, WORKER_AXES, state, is_leaf=lambda axis: axis is None)
  params = place(None, params)
  before = jax.tree.map(lambda x: x.sharding, (state, params))
  with jax.set_mesh(mesh):
    step = jax.jit(workers.make_manual_step(tx, gradient, mesh), out_shardings=before)
    for t in range(PERIOD):
      state, params = step(jnp.int32(t), state, params)
  after = jax.tree.map(lambda x: x.sharding, (state, params))
  same = jax.tree.map(lambda a, b, x: a.is_equivalent_to(b, x.ndim), before, after, (state, params))
  assert all(jax.tree.leaves(same))
  *_, (expected, consensus) = workers.run(tx, make('desloc', inner_name)[2], gradient, 2, PERIOD)
  np.testing.assert_allclose(params['kernel'], consensus['kernel'], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    state.params['kernel'], expected.params['kernel'], rtol=1e-5, atol=1e-6
  )


def test_injected_hyperparameters_are_not_averaged():
  inner = optax.inject_hyperparams(optax.adam)(learning_rate=0.05)
  tx = make_method('desloc', inner, {'params': 2, 'mu': 2, 'nu': 2})
  *_, (state, params) = workers.run(tx, make('desloc', 'adam')[2], gradient, WORKERS, 4)
  np.testing.assert_allclose(state.inner.hyperparams['learning_rate'], 0.05)
  assert distance(params) < 1
