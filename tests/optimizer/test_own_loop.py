"""What an own loop uses of the package: placing, compiling once, and what is refused."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import optax
import pytest

from desloc_jax import (
  AXIS_NAMES,
  ddp,
  desloc,
  HealthCheck,
  init_over_workers,
  local_params,
  over_workers,
  step_over_workers,
  synced,
  transform_ledger,
  with_gradient_check,
  WORKER_AXES,
)

PERIODS = {'params': 2, 'mu': 4, 'nu': 4}
PARAMS = {'w': jnp.linspace(0.0, 1.0, 16), 'b': jnp.float32(0)}


def worker_step(tx):
  def step(params, state, batch):
    loss = lambda p: jnp.mean((batch @ p['w'] + p['b'] - 1) ** 2)
    value, grads = jax.value_and_grad(loss)(local_params(state, params))
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  return step


def make_mesh(*sizes, names=('workers', 'fsdp'), types=AxisType.Auto):
  return jax.make_mesh(
    sizes, names[: len(sizes)], axis_types=(types,) * len(sizes),
    devices=jax.devices()[: int(np.prod(sizes))],
  )  # fmt: skip


def train(tx, mesh, workers, steps=6):
  """Returns what a short loop ends with: consensus, state, compilations."""
  axes = (None, WORKER_AXES, 0)
  step = jax.jit(over_workers(worker_step(tx), mesh, axes, axes), donate_argnums=(0, 1))
  params, state = init_over_workers(tx, PARAMS, mesh, workers)
  for t in range(steps):
    batch = jax.random.normal(jax.random.key(t), (workers, 8, 16)) + 1
    params, state, loss = step(params, state, batch)
  assert loss.shape == (workers,) and not PARAMS['w'].is_deleted()
  return params, state, step._cache_size()


TRANSFORMS = {
  'adam': lambda: desloc(optax.adam(0.05), PERIODS, AXIS_NAMES),
  'health, outer': lambda: desloc(
    optax.adam(0.05), PERIODS, AXIS_NAMES, outer=optax.contrib.dog(1.0), health=HealthCheck()
  ),
  'ddp': lambda: ddp(optax.adam(0.05), AXIS_NAMES),
}
MESHES = {
  'a device each': (4,),
  'two on a device': (2,),
  'all on a device': (1,),
  'two devices each': (4, 2),
}


@pytest.mark.parametrize('sizes', MESHES.values(), ids=MESHES)
@pytest.mark.parametrize('name', TRANSFORMS)
def test_a_step_compiles_once(name, sizes):
  params, state, compilations = train(TRANSFORMS[name](), make_mesh(*sizes), 4)
  assert compilations == 1
  alone, _, _ = train(TRANSFORMS[name](), make_mesh(1), 4)
  np.testing.assert_allclose(params['w'], alone['w'], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('sizes', [(4,), (4, 2)], ids=['workers', 'workers and fsdp'])
def test_explicit_axes_which_are_what_make_mesh_makes(sizes):
  tx = TRANSFORMS['adam']()
  mesh = jax.make_mesh(sizes, ('workers', 'fsdp')[: len(sizes)],
                       devices=jax.devices()[: int(np.prod(sizes))])  # fmt: skip
  params, _, compilations = train(tx, mesh, 4)
  assert compilations == 1
  np.testing.assert_array_equal(params['w'], train(tx, make_mesh(*sizes), 4)[0]['w'])


@pytest.mark.parametrize('use', ['over_workers', 'init_over_workers'])
def test_a_mesh_without_workers_is_refused(use):
  mesh, tx = make_mesh(2, 2, names=('data', 'model')), TRANSFORMS['adam']()
  with pytest.raises(
    ValueError, match="has the axes 'data', 'model'; expected one called 'workers'"
  ):
    if use == 'over_workers':
      over_workers(worker_step(tx), mesh, (None, WORKER_AXES, 0), (None, WORKER_AXES, 0))
    else:
      init_over_workers(tx, PARAMS, mesh, 4)


@pytest.mark.parametrize('workers', [0, 3, 5])
def test_workers_that_do_not_fit_the_mesh_are_refused(workers):
  with pytest.raises(ValueError, match=f'{workers} workers cannot share the 4 places'):
    init_over_workers(TRANSFORMS['adam'](), PARAMS, make_mesh(4), workers)


WRAPPERS = {
  'apply_if_finite': lambda tx: optax.apply_if_finite(tx, 3),
  'MultiSteps': lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
  'chain': lambda tx: optax.chain(tx, optax.scale(-0.1)),
}


@pytest.mark.parametrize('name', WRAPPERS)
def test_a_wrapped_transform_is_refused(name):
  wrapped = WRAPPERS[name](desloc(optax.scale_by_adam(), PERIODS, AXIS_NAMES))
  refused = pytest.raises(ValueError, match='expected a DeslocState: desloc must be outermost')
  mesh, state = make_mesh(4), wrapped.init(PARAMS)
  with refused:
    init_over_workers(wrapped, PARAMS, mesh, 4)
  with refused:
    transform_ledger(wrapped, PARAMS, PERIODS, 4, AXIS_NAMES)
  with refused:
    synced(state, state)
  axes = (None, WORKER_AXES, 0)
  with refused:
    over_workers(worker_step(wrapped), mesh, axes, axes)(PARAMS, state, jnp.ones((4, 8, 16)))


def test_what_is_inside_is_right():
  """One worker's gradient is not finite for a step: it alone skips it, and the mean stays finite."""
  tx = desloc(optax.apply_if_finite(optax.adam(0.05), 3), PERIODS, AXIS_NAMES)
  params, state = init_over_workers(tx, PARAMS, make_mesh(4), 4)
  axes = (None, WORKER_AXES, 0)
  step = jax.jit(over_workers(worker_step(tx), make_mesh(4), axes, axes))
  for t in range(4):
    batch = jnp.ones((4, 8, 16)).at[2].set(jnp.nan if t == 1 else 1.0)
    params, state, _ = step(params, state, batch)
  assert np.isfinite(params['w']).all()
  assert state.inner.total_notfinite.tolist() == [0, 0, 1, 0]


SQUARE = lambda params, batch: jnp.mean((batch @ params['w'] + params['b'] - 1) ** 2)


def run(tx, mesh, params, workers, axis='workers', **options):
  """Returns what six steps of `step_over_workers` end with, and what was last returned."""
  step = step_over_workers(tx, options.pop('loss', SQUARE), mesh, axis=axis, **options)
  params, state = init_over_workers(tx, params, mesh, workers, axis)
  placed = jax.tree.map(lambda x: x.sharding, (params, state))
  for t in range(6):
    batch = jax.random.normal(jax.random.key(t), (workers, 8, 16)) + 1
    params, state, value = step(params, state, batch)
  assert jax.tree.map(lambda x: x.sharding, (params, state)) == placed
  return params, state, value


@pytest.mark.parametrize('sizes', MESHES.values(), ids=MESHES)
def test_a_whole_step_on_an_axis_of_any_name(sizes):
  """Also where workers share a device: none of them is left out of the averages."""
  tx = desloc(optax.adam(0.05), PERIODS, 'data')
  mesh = make_mesh(*sizes, names=('data', 'fsdp'))
  params, state, loss = run(tx, mesh, PARAMS, 4, 'data')
  expected, _, _ = train(TRANSFORMS['adam'](), make_mesh(1), 4)
  np.testing.assert_allclose(params['w'], expected['w'], rtol=1e-4, atol=1e-6)
  assert loss.shape == (4,)
  for worker in range(4):
    np.testing.assert_array_equal(state.params['w'][worker], params['w'])


@pytest.mark.parametrize('types', [AxisType.Auto, AxisType.Explicit])
def test_a_worker_of_several_devices_splits_what_its_parameters_split(types):
  mesh = make_mesh(2, 4, types=types)
  params = PARAMS | {'w': jax.device_put(PARAMS['w'], NamedSharding(mesh, P('fsdp')))}
  loss = lambda *args: (SQUARE(*args), {'twice': 2 * SQUARE(*args)})
  params, state, (value, aux) = run(
    TRANSFORMS['health, outer'](), mesh, params, 4, loss=loss, has_aux=True
  )
  np.testing.assert_allclose(aux['twice'], 2 * value, rtol=1e-6)
  adam = state.inner[0]
  for x in (state.params['w'], adam.mu['w'], adam.nu['w']):
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 4)}
  assert {shard.data.shape for shard in params['w'].addressable_shards} == {(4,)}


@pytest.mark.parametrize('place', ['own', 'consensus'])
def test_a_gradient_taken_at_the_consensus_is_caught(place):
  tx = with_gradient_check(TRANSFORMS['adam']())
  mesh, batch = make_mesh(2), jax.random.normal(jax.random.key(0), (4, 8, 16)) + 1

  def worker_step(params, state, batch):
    grad_fn = jax.grad(lambda p: SQUARE(p, batch))
    grads = grad_fn(state.params if place == 'own' else params)
    return tx.step(grads, state, params, grad_fn=grad_fn)

  axes = (None, WORKER_AXES)
  step = jax.jit(over_workers(worker_step, mesh, (*axes, 0), axes))
  params, state = init_over_workers(tx, PARAMS, mesh, 4)
  params, state = jax.block_until_ready(step(params, state, batch))
  if place == 'own':
    jax.block_until_ready(step(params, state, batch))
    jax.effects_barrier()
    return
  with pytest.raises(jax.errors.JaxRuntimeError, match='step 1 was taken at the consensus'):
    jax.block_until_ready(step(params, state, batch))
    jax.effects_barrier()
