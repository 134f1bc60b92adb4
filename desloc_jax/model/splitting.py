"""How the devices of one worker share its work (FSDP): sequences and weights split over them.

Weights are gathered where they are needed, and their gradients are added up where they are split,
each device getting its part of the sum only: an all-gather and a reduce-scatter by construction,
not by the judgement of XLA's partitioner. Outside a mesh that has `BATCH_AXIS` as an Auto axis, as
in a plain `jax.jit`, nothing is split.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

BATCH_AXIS = 'fsdp'  # The mesh axis that sequences are split over, where a mesh has it.
_LONG = 16_384  # Rows of which XLA for TPUs (libtpu 0.0.42) scatters the sum, at most.


def over_batch_parts(function: Callable, weights: jax.Array, *inputs: jax.Array) -> jax.Array:
  """Returns `function(weights, *inputs)`, each device with all weights for its part of the inputs.

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(part: jax.Array, dimension: int) -> jax.Array:
  """Returns the whole of an array of which each device has a part along `dimension`."""
  return jax.lax.all_gather(part, BATCH_AXIS, axis=dimension, tiled=True)


def _gather_forward(part, dimension):
  return _gather(part, dimension), None


def _gather_backward(dimension, _, gradient):
  """Returns of the sum of the devices' gradients the part of this one.

  That is the transpose of the gathering, written so that XLA for TPUs scatters it, over one slice
  and several: along a leading axis of devices, and in pieces where it is long. Else it would add up
  the whole on every device, at twice the bytes. (Where columns are split, or several workers share
  the devices, it was not compiled for TPUs.)
  """
  shape = gradient.shape
  devices = jax.lax.axis_size(BATCH_AXIS)
  parts = gradient.reshape(*shape[:dimension], devices, -1, *shape[dimension + 1 :])
  parts = jnp.moveaxis(parts, dimension, 0)
  rows = parts.shape[1]
  # Of columns a device has all rows: by their sum there would be too many pieces.
  most = _LONG // devices if dimension == 0 else _LONG
  pieces = (parts[:, start : start + most] for start in range(0, rows, most))
  return (jnp.concatenate([jax.lax.psum_scatter(piece, BATCH_AXIS) for piece in pieces]),)


_gather.defvjp(_gather_forward, _gather_backward)


def batch_parts(batch: int) -> int:
  """Returns over how many devices `batch` sequences are split: 1 where they cannot be.

  They cannot be without `BATCH_AXIS` in the mesh of the surrounding `shard_map` or `set_mesh`,
  where it must be of type Auto, or with a number of sequences that the axis does not divide.
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
  """Returns the first dimension of an array that so many devices can share evenly, None if none."""
  fitting = (i for i, size in enumerate(shape) if devices > 1 and size % devices == 0)
  return next(fitting, None)
