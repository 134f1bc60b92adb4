"""Runs one worker's program on all workers, on any number of devices down to one."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

WORKERS = 'workers'
# Workers that share a device are a vmapped axis: averages go over both.
REPLICAS = 'replicas'
AXIS_NAMES = (WORKERS, REPLICAS)


def over_workers(function: Callable, mesh: Mesh, in_axes, out_axes) -> Callable:
  """Maps `function` of one worker over all: over devices by shard_map, and on each by vmap.

  The program is manual over the mesh axis 'workers', so that nothing crosses it but what `function`
  writes; any other mesh axis stays as it is, and XLA shards each worker over it.

  Args:
    function: of one worker, inside the axes `AXIS_NAMES`.
    mesh: with an axis 'workers' whose size divides the number of workers.
    in_axes: a prefix of the arguments: 0 where they are [workers, ...], None where they are not.
    out_axes: likewise, of the results.
  """
  replicas = jax.vmap(function, in_axes=in_axes, out_axes=out_axes, axis_name=REPLICAS)
  if is_local(mesh):
    return _with_axis_of_one(replicas)
  # The types of varying axes have no rule for a mean over a manual and a vmapped axis at once.
  return jax.shard_map(
    replicas,
    mesh=mesh,
    in_specs=worker_specs(in_axes),
    out_specs=worker_specs(out_axes),
    axis_names={WORKERS},
    check_vma=False,
  )


def is_local(mesh: Mesh) -> bool:
  """Whether nothing can cross workers on `mesh`: all of them share the same several devices.

  XLA's partitioner then refuses an average over the manual axis of one (JAX 0.10 to 0.12), and there
  is no need of a manual axis.
  """
  return mesh.shape[WORKERS] == 1 and mesh.size > 1


def _with_axis_of_one(function: Callable) -> Callable:
  """Binds the axis of the workers to one element."""
  mapped = jax.vmap(function, in_axes=None, out_axes=0, axis_size=1, axis_name=WORKERS)

  def call(*args):
    return jax.tree.map(lambda x: x[0], mapped(*args))

  return call


def worker_specs(axes):
  """Returns the `jax.shard_map` specs, manual over workers only, for a prefix of 0 and None."""
  return jax.tree.map(
    lambda axis: PartitionSpec() if axis is None else PartitionSpec(WORKERS),
    axes,
    is_leaf=lambda axis: axis is None,
  )
