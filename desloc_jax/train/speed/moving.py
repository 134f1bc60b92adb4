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

  leaves, structure = jax.tree.flatten(tree)
  of_subtree = lambda spec, subtree: jax.tree.map(lambda _: NamedSharding(mesh, spec), subtree)
  is_spec = lambda x: isinstance(x, P)
  shardings = jax.tree.leaves(jax.tree.map(of_subtree, worker_specs(axes), tree, is_leaf=is_spec))
  # Parts with the same bounds are copies of each other: one is taken. All in one call: each takes as
  # much of a core as a copy of 1 MB.
  parts = [{_bounds(s.index, x.shape): s.data for s in x.addressable_shards} for x in leaves]
  (device,) = {each for sharding in shardings for each in sharding.addressable_devices}
  moved = jax.device_put([list(of_leaf.values()) for of_leaf in parts], device)
  gathered = map(_gather, leaves, shardings, parts, moved)
  return structure.unflatten(gathered)


def to_steps(tree: Any, shardings: Any) -> Any:
  """Returns copies of arrays of the exchange where the steps have theirs.

  Args:
    tree: arrays on the mesh of the exchange.
    shardings: a tree like `tree`, of the copies.
  """
  leaves, structure = jax.tree.flatten(tree)
  places = structure.flatten_up_to(shardings)
  cut, devices = zip(*map(_cut, leaves, places), strict=True)
  moved = jax.device_put(list(cut), list(devices))
  spread = (
    jax.make_array_from_single_device_arrays(x.shape, sharding, parts)
    for x, sharding, parts in zip(leaves, places, moved, strict=True)
  )
  return structure.unflatten(spread)


def _gather(
  x: jax.Array, sharding: NamedSharding, parts: dict[Bounds, jax.Array], moved: list[jax.Array]
) -> jax.Array:
  if len(moved) > 1:
    first, last = (
      [pick(bounds[axis][side] for bounds in parts) for axis in range(x.ndim)]
      for side, pick in ((0, min), (1, max))
    )
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


def _cut(x: jax.Array, sharding: NamedSharding) -> tuple[list[jax.Array], list[jax.Device]]:
  """Returns the parts of this process' part of `x`, and the devices where `sharding` has them."""
  (here,) = x.addressable_shards
  first = [start for start, _ in _bounds(here.index, x.shape)]
  whole = tuple((0, size) for size in here.data.shape)
  places = sharding.addressable_devices_indices_map(x.shape)
  parts = []
  for index in places.values():
    bounds = _from(_bounds(index, x.shape), first)
    parts.append(here.data if bounds == whole else here.data[tuple(slice(*b) for b in bounds)])
  return parts, list(places)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
  return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _from(bounds: Bounds, first: list[int]) -> Bounds:
  return tuple((start - low, stop - low) for (start, stop), low in zip(bounds, first, strict=True))
