"""The mean over workers on a mesh: small arrays travel as one, and come out as they would alone."""

import jax
from jax.extend import core
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
import numpy as np
import pytest

from desloc_jax.optimizer import averaging
from desloc_jax.optimizer.averaging import Share, worker_mean

SHAPES = {
  'scalar': ((), jnp.float32),
  'vector': ((7,), jnp.float32),
  'matrix': ((3, 5), jnp.float32),
  'empty': ((0, 4), jnp.float32),
  'half': ((6,), jnp.bfloat16),
  'other half': ((2, 2), jnp.bfloat16),
  'large': ((16, 8), jnp.float32),
}


@pytest.fixture(autouse=True)
def small_packs(monkeypatch):
  monkeypatch.setattr(averaging, 'PACKED_BYTES', 100)


def arrays(workers):
  rng = np.random.default_rng(0)
  # Sums of small whole numbers have no rounding, whatever their order.
  return {
    name: jnp.asarray(rng.integers(-8, 8, (workers, *shape)), dtype)
    for name, (shape, dtype) in SHAPES.items()
  }


def only_float32(tree):
  # XLA for CPU (JAX 0.10 to 0.12) ends the process at an all-reduce of bfloat16 in a shard_map.
  return {name: values for name, values in tree.items() if values.dtype == jnp.float32}


def mean_on(mesh, tree, share=None):
  def of_worker(tree):
    own = jax.tree.map(lambda x: x[0], tree)
    return worker_mean(own, 'workers', share and share())

  return jax.shard_map(
    of_worker, mesh=mesh, in_specs=P('workers'), out_specs=P(), axis_names={'workers'}
  )


def make_mesh(workers, fsdp):
  devices = jax.devices()[: workers * fsdp]
  types = (AxisType.Auto,) * 2
  return jax.make_mesh((workers, fsdp), ('workers', 'fsdp'), axis_types=types, devices=devices)


def sent_arrays(function, tree):
  """Returns the shapes that the program sends."""
  shapes = []

  def walk(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name.startswith('psum'):
        shapes.extend(variable.aval.shape for variable in equation.invars)
      for inner in core.jaxprs_in_params(equation.params):
        walk(inner)

  walk(jax.make_jaxpr(function)(tree).jaxpr)
  return shapes


def test_small_arrays_of_a_dtype_are_one():
  mesh, tree = make_mesh(4, 1), arrays(4)
  mean = mean_on(mesh, tree)
  assert sorted(sent_arrays(mean, tree)) == [(10,), (16, 8), (1 + 7 + 15,)]
  tree = only_float32(tree)
  for name, values in jax.jit(mean)(tree).items():
    assert values.shape == tree[name].shape[1:]
    expected = np.asarray(tree[name], np.float64).mean(axis=0)
    np.testing.assert_array_equal(np.asarray(values, np.float64), expected)


def test_weighted_means_are_packed_too():
  mesh, tree = make_mesh(4, 1), arrays(4)
  weights = np.array([0.0, 1.0, 2.0, 1.0], np.float32)
  share = lambda: Share(jnp.asarray(weights)[jax.lax.axis_index('workers')], jnp.float32(4))
  mean = mean_on(mesh, tree, share)
  assert len(sent_arrays(mean, tree)) == 3
  tree = only_float32(tree)
  for name, values in jax.jit(mean)(tree).items():
    expected = np.average(np.asarray(tree[name], np.float64), axis=0, weights=weights)
    np.testing.assert_array_equal(np.asarray(values, np.float64), expected)


def test_arrays_split_over_the_devices_of_a_worker_stay_apart():
  """In one array they would have to be gathered first, and each device would send all of them."""
  mesh, tree = make_mesh(2, 2), arrays(2)
  assert len(sent_arrays(mean_on(mesh, tree), tree)) == len(SHAPES)


def test_workers_on_one_device_send_nothing_and_copy_nothing():
  tree = arrays(4)
  mean = jax.vmap(lambda own: worker_mean(own, 'workers'), axis_name='workers')
  assert 'concatenate' not in str(jax.make_jaxpr(mean)(tree))
