"""Arrays between the devices that make steps and those that exchange, copied while both work.

Each process moves its own parts; nothing crosses the network. A worker's array that is split over
`mesh.fsdp` devices becomes one, and is split again on its way back.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from desloc_jax.optimizer.over_workers import worker_specs

Bounds = tuple[tuple[int, int], ...]


def to_exchange(tree: Any, axes: Any, mesh: Mesh) -> Any:
  """Returns copies of arrays of the steps, on the devices that exchange.

  What they are copies of may be donated afterwards.

  Args:
    tree: arrays on the mesh of the steps.
    axes: a prefix of `tree`: 0 where leaves are [workers, ...], None where they are the same on all.
    mesh: of a device of each process.
  """

  def of_subtree(spec: P, subtree: Any) -> Any:
    return jax.tree.map(lambda x: _gather(x, NamedSharding(mesh, spec)), subtree)

  return jax.tree.map(of_subtree, worker_specs(axes), tree, is_leaf=lambda x: isinstance(x, P))


def to_steps(tree: Any, shardings: Any) -> Any:
  """Returns copies of arrays of the exchange where the steps have theirs.

  Args:
    tree: arrays on the mesh of the exchange.
    shardings: a tree like `tree`, of the copies.
  """
  return jax.tree.map(_spread, tree, shardings)


def _gather(x: jax.Array, sharding: NamedSharding) -> jax.Array:
  (device,) = sharding.addressable_devices
  # Parts with the same bounds are copies of each other: one is taken.
  parts = {_bounds(shard.index, x.shape): shard.data for shard in x.addressable_shards}
  first, last = (
    [pick(bounds[axis][side] for bounds in parts) for axis in range(x.ndim)]
    for side, pick in ((0, min), (1, max))
  )
  moved = [jax.device_put(part, device) for part in parts.values()]
  if len(moved) > 1:
    places = tuple(_from(bounds, first) for bounds in parts)
    shape = tuple(stop - start for start, stop in zip(first, last, strict=True))
    moved = [_assemble(moved, places=places, shape=shape)]
  return jax.make_array_from_single_device_arrays(x.shape, sharding, moved)


@functools.partial(jax.jit, static_argnames=('places', 'shape'))
def _assemble(parts: list[jax.Array], places: tuple[Bounds, ...], shape: tuple[int, ...]):
  whole = jnp.zeros(shape, parts[0].dtype)
  for part, place in zip(parts, places, strict=True):
    whole = jax.lax.dynamic_update_slice(whole, part, [start for start, _ in place])
  return whole


def _spread(x: jax.Array, sharding: NamedSharding) -> jax.Array:
  (here,) = x.addressable_shards
  first = [start for start, _ in _bounds(here.index, x.shape)]
  whole = tuple((0, size) for size in here.data.shape)
  parts = []
  for device, index in sharding.addressable_devices_indices_map(x.shape).items():
    bounds = _from(_bounds(index, x.shape), first)
    part = here.data if bounds == whole else here.data[tuple(slice(*ends) for ends in bounds)]
    parts.append(jax.device_put(part, device))
  return jax.make_array_from_single_device_arrays(x.shape, sharding, parts)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
  return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _from(bounds: Bounds, first: list[int]) -> Bounds:
  return tuple((start - low, stop - low) for (start, stop), low in zip(bounds, first, strict=True))
