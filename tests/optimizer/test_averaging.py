"""The mean over workers on a mesh: small arrays travel as one, and come out as they would alone."""

import functools

import jax
from jax.extend import core
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
import numpy as np
import optax
import pytest

from desloc_jax import desloc
from desloc_jax.optimizer import averaging
from desloc_jax.optimizer.averaging import relative_distance, Share, worker_mean, worker_share
from tests import workers

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


# Low precision.

LOW = [jnp.float16, jnp.bfloat16, jnp.float8_e5m2, jnp.float8_e4m3fn]
WEIGHTS = {
  'none': None,
  'large': [257, 257, 257],
  'small': [1e-6, 1e-6, 1e-6],
  'unlike': [3, 5, 7],
  'far apart': [1, 100, 1000],
  'one is away': [2, 2, 0],
}


@functools.partial(jax.jit, static_argnames='weights')
def means_of_three(rows, weights):
  """Over a vmapped axis, [3, n] -> [3, n]."""
  weights = None if weights is None else np.asarray(weights, float)

  def of_worker(own):
    return worker_mean(own, 'workers', worker_share('workers', weights, None))

  return jax.vmap(of_worker, axis_name='workers')(rows)


def mean_of_three(rows, weights=None):
  """[3, n] -> [n]."""
  means = np.asarray(means_of_three(rows, weights and tuple(weights)))
  assert means.dtype == rows.dtype and (means == means[0]).all()
  return means[0]


@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('dtype', LOW, ids=lambda dtype: dtype.__name__)
def test_workers_that_are_equal_stay_as_they_are(dtype, weights):
  """After 20 means in a row: to a rounding or two each, and without a trend."""
  start = np.random.default_rng(0).uniform(0.5, 4.0, 2000).astype(dtype)
  own = start
  for _ in range(20):
    own = mean_of_three(np.stack([own] * 3), WEIGHTS[weights])
  change = np.asarray(own, np.float64) / np.asarray(start, np.float64) - 1
  spacing = float(jnp.finfo(dtype).eps)
  assert abs(change.mean()) < spacing / 8 and abs(change).max() <= 2 * spacing


@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('dtype', LOW, ids=lambda dtype: dtype.__name__)
def test_means_of_large_values_do_not_overflow(dtype, weights):
  largest = float(jnp.finfo(dtype).max)
  rows = jnp.asarray(np.array([[0.9], [0.8], [0.7]]) * largest, dtype)
  expected = np.average(np.asarray(rows, np.float64), axis=0, weights=WEIGHTS[weights])
  mean = np.asarray(mean_of_three(rows, WEIGHTS[weights]), np.float64)
  np.testing.assert_allclose(mean, expected, rtol=2 * float(jnp.finfo(dtype).eps))


def test_a_worker_that_does_not_count_is_left_out_in_low_precision_too():
  rows = jnp.asarray([[1.0], [jnp.nan], [3.0]], jnp.bfloat16)
  assert mean_of_three(rows, [1, 0, 1]) == 2
  assert mean_of_three(jnp.full((3, 1), jnp.inf, jnp.float16)) == jnp.inf


@pytest.mark.parametrize('fsdp', [1, 2])
def test_low_precision_on_a_mesh(fsdp):
  """Packed and apart."""
  mesh = make_mesh(4, fsdp)
  rows = {'a': jnp.full((4, 3), 20_000, jnp.float16), 'b': jnp.full((4, 2), 3, jnp.float16)}
  mean = jax.jit(mean_on(mesh, rows))(rows)
  assert (mean['a'] == 20_000).all() and (mean['b'] == 3).all()
  assert len(sent_arrays(mean_on(mesh, rows), rows)) == fsdp


@pytest.mark.parametrize('dtype', LOW[:2], ids=lambda dtype: dtype.__name__)
def test_drift_of_low_precision(dtype):
  """A distance of 1e-4 has a square that float16 rounds to zero, and one of 300 an infinite one."""
  for size in (1e-4, 300.0):
    own, mean = jnp.full(4, 2 * size, dtype), jnp.full(4, size, dtype)
    np.testing.assert_allclose(relative_distance(own, mean), 1.0, rtol=0.02)


@pytest.mark.parametrize('dtype', LOW[:2], ids=lambda dtype: dtype.__name__)
def test_weights_do_not_shrink_the_consensus(dtype):
  tx = desloc(optax.sgd(0.0), {'params': 1})
  still = lambda t, worker, x: jax.tree.map(jnp.zeros_like, x)
  extra = lambda t: {'weights': np.full(3, 257.0)}
  *_, (_, params) = workers.run(tx, {'w': jnp.ones(5, dtype)}, still, 3, 20, extra=extra)
  assert (params['w'] == 1).all()
