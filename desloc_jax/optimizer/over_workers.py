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
  # The types of varying axes have no rule for a mean over a manual and a vmapped axis at once.
  return jax.shard_map(
    replicas,
    mesh=mesh,
    in_specs=worker_specs(in_axes),
    out_specs=worker_specs(out_axes),
    axis_names={WORKERS},
    check_vma=False,
  )


def worker_specs(axes):
  """Returns the `jax.shard_map` specs, manual over workers only, for a prefix of 0 and None."""
  return jax.tree.map(
    lambda axis: PartitionSpec() if axis is None else PartitionSpec(WORKERS),
    axes,
    is_leaf=lambda axis: axis is None,
  )
