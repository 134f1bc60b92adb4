"""Weights and sequences split over the devices of a worker: what the compiled step sends."""

import functools
import re

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from desloc_jax import model, over_workers
from desloc_jax.model import splitting
from desloc_jax.model.splitting import BATCH_AXIS, over_batch_parts, split_dimension


@pytest.mark.parametrize('tied', [True, False], ids=['tied', 'untied'])
def test_splitting_over_fsdp_gathers_parameters_and_not_activations(tied):
  config = model.GPTConfig(128, 2, 64, 2, seq_len=16, loss_chunk=64, tie_embeddings=tied)
  of_worker = jax.value_and_grad(functools.partial(model.next_token_loss, config=config))
  keys = jax.random.split(jax.random.key(0))
  params = jax.vmap(functools.partial(model.init_params, config))(keys)
  tokens = jax.random.randint(jax.random.key(1), (2, 8, 17), 0, 128)
  types, devices = (AxisType.Auto,) * 2, jax.devices()[:4]
  mesh = jax.make_mesh((2, 2), ('workers', 'fsdp'), axis_types=types, devices=devices)
  split = jax.jit(over_workers(of_worker, mesh, in_axes=(0, 0), out_axes=0))

  def last_axis(x):
    spec = P('workers', *[None] * (x.ndim - 2), 'fsdp')
    return jax.device_put(x, NamedSharding(mesh, spec))

  batch = jax.device_put(tokens, NamedSharding(mesh, P('workers', 'fsdp')))
  args = jax.tree.map(last_axis, params), batch
  compiled = split.lower(*args).compile()
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, compiled(*args), jax.jit(jax.vmap(of_worker))(params, tokens))
  gathered, reduced, scattered = (
    re.findall(rf'= f32(\S+?){{\S* {what}\(', compiled.as_text())
    for what in ('all-gather', 'all-reduce', 'reduce-scatter')
  )
  weights = {'[128,64]', '[64,192]', '[64,64]', '[64,256]', '[256,64]'}
  assert weights <= set(gathered)
  # Of each gradient a device has its part of the sum; sums of whole ones are of norms only.
  assert {'[1,64,64]', '[1,32,192]', '[1,32,64]', '[1,32,256]', '[1,128,64]'} <= set(scattered)
  assert not weights & set(reduced)
  # Neither are what a layer computes.
  assert not any(',16,192]' in shape or ',16,256]' in shape for shape in gathered + reduced)


@pytest.mark.parametrize(
  ('shape', 'devices', 'dimension'),
  [
    ((8192, 2048), 16, 0),
    ((3, 8), 4, 1),
    ((3, 5), 4, None),
    ((8,), 1, None),
  ],
)
def test_the_first_dimension_that_can_be_is_split(shape, devices, dimension):
  assert split_dimension(shape, devices) == dimension


@pytest.mark.parametrize(
  ('shape', 'pieces'),
  [((132, 8), 4), ((130, 8), 4), ((130, 9), 0)],
  ids=['rows', 'columns', 'not'],
)
@pytest.mark.parametrize('long', [16_384, 40], ids=['whole', 'pieces'])
def test_split_weights_have_the_values_and_gradients_of_whole_ones(
  shape, pieces, long, monkeypatch
):
  """Of 33 rows a device 10 are summed at once, of 130 rows of the columns of a device 40."""
  monkeypatch.setattr(splitting, '_LONG', long)
  noise = np.random.default_rng(0)
  weights = noise.normal(size=shape).astype(np.float32)
  inputs = noise.normal(size=(8, shape[0])).astype(np.float32)
  mesh = jax.make_mesh((4,), (BATCH_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))

  def loss(weights):
    return (over_batch_parts(lambda w, x: x @ w, weights, inputs) ** 2).sum()

  with jax.set_mesh(mesh):
    step = jax.value_and_grad(loss)
    value, gradient = jax.jit(step)(weights)
    sums = str(jax.make_jaxpr(step)(weights)).count('reduce_scatter[')
  assert sums == (pieces if long < 130 else min(pieces, 1))
  product = inputs.astype(np.float64) @ weights
  np.testing.assert_allclose(value, (product**2).sum(), rtol=1e-5)
  np.testing.assert_allclose(gradient, 2 * inputs.T @ product, rtol=1e-4, atol=1e-3)
