"""How the devices of one worker share its work (FSDP): sequences and weights split over all of them.

Weights are gathered where they are needed, and their gradients are added up where they are split, each
device getting its part of the sum only: an all-gather and a reduce-scatter by construction, not by the
judgement of XLA's partitioner. Outside a mesh that has `BATCH_AXIS` as an Auto axis, as in a plain
`jax.jit`, nothing is split.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

BATCH_AXIS = 'fsdp'  # The mesh axis that sequences are split over, where a mesh has it.
_TILE = 128  # Elements of the last dimension that TPUs keep together.
# Rows of an array from which on XLA for TPUs (libtpu 0.0.42) sums the whole of it, if rows are split.
_LONG = 16_384


def over_batch_parts(function: Callable, weights: jax.Array, *inputs: jax.Array) -> jax.Array:
  """Returns `function(weights, *inputs)`, each device with all of `weights` for its part of `inputs`.

  The gradient of `weights` is summed over devices once, when that of each device is done, in the
  dtype of `weights`.

  Args:
    function: maps weights and arrays [sequences, ...] to an array [sequences, ...].
    weights: split over `BATCH_AXIS` along `split_dimension`.
    *inputs: [B, ...].
  """
  parts = batch_parts(inputs[0].shape[0])
  if parts == 1:
    return function(weights, *inputs)
  dimension = split_dimension(weights.shape, parts)

  def of_part(weights, *inputs):
    if dimension is not None:
      weights = _gather(weights, dimension)
    return function(weights, *inputs)

  split = PartitionSpec(*[BATCH_AXIS if i == dimension else None for i in range(weights.ndim)])
  sequences = PartitionSpec(BATCH_AXIS)
  return jax.shard_map(
    of_part,
    in_specs=(split, *[sequences] * len(inputs)),
    out_specs=sequences,
    axis_names={BATCH_AXIS},
    check_vma=False,  # As around it: see `over_workers`.
  )(weights, *inputs)


def _gather(part: jax.Array, dimension: int) -> jax.Array:
  """Returns the whole of an array of which each device has a part along `dimension`."""
  rows = part.shape[0]
  if dimension > 0:  # The sum of gradients, which is the transpose of this, is of whole tiles then.
    part = jnp.pad(part, [(0, -rows % _TILE)] + [(0, 0)] * (part.ndim - 1))
  whole = jax.lax.all_gather(part, BATCH_AXIS, axis=dimension, tiled=True)
  return whole if dimension == 0 else whole[:rows]


def batch_parts(batch: int) -> int:
  """Returns over how many devices `batch` sequences are split: 1 where they cannot be.

  They cannot be without `BATCH_AXIS` in the mesh of the surrounding `shard_map` or `set_mesh`, where
  it must be of type Auto, or with a number of sequences that the axis does not divide.
  """
  devices = jax.sharding.get_abstract_mesh().shape.get(BATCH_AXIS, 1)
  return 1 if batch % devices else devices


def split_batch(x_BxLxD: jax.Array) -> jax.Array:
  """Returns x with its sequences split over `BATCH_AXIS`, or x where that cannot be."""
  # Else the partitioner might split what stays between two matmuls in another way.
  if batch_parts(x_BxLxD.shape[0]) == 1:
    return x_BxLxD
  return jax.lax.with_sharding_constraint(x_BxLxD, PartitionSpec(BATCH_AXIS))


def split_dimension(shape: tuple[int, ...], devices: int) -> int | None:
  """Returns the dimension of an array that is split over `devices`, None if none can be.

  It is the first that they can share evenly. An array with more rows than `_LONG`, as an embedding has,
  is split along its last dimension if each device gets whole tiles: XLA for TPUs scatters the sum of
  gradients then, where it would mostly sum the whole on every device, at twice the bytes.
  """
  fitting = [i for i, size in enumerate(shape) if devices > 1 and size % devices == 0]
  if not fitting:
    return None
  first, last = fitting[0], fitting[-1]
  return last if shape[0] > _LONG and shape[last] % (devices * _TILE) == 0 else first
