"""Runs one worker's program on all workers, on any number of devices down to one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import optax

from desloc_jax.optimizer.state import check_state, DeslocState, WORKER_AXES

WORKERS = 'workers'
# Workers that share a device are a vmapped axis: averages go over both.
REPLICAS = 'replicas'
AXIS_NAMES = (WORKERS, REPLICAS)


def over_workers(function: Callable, mesh: Mesh, in_axes: Any, out_axes: Any) -> Callable:
  """Maps `function` of one worker over all: over devices by shard_map, and on each by vmap.

  The program is manual over the mesh axis 'workers', so that nothing crosses it but what `function`
  writes; any other mesh axis stays as it is, and XLA shards each worker over it.

  Args:
    function: of one worker, inside the axes `AXIS_NAMES`.
    mesh: with an axis 'workers' whose size divides the number of workers.
    in_axes: a prefix of the arguments: 0 where they are [workers, ...], None where they are not.
    out_axes: likewise, of the results.

  Raises:
    ValueError: the mesh has no axis 'workers'; or, when called, an argument is not what its axes
      are for, as the state of a transformation that is wrapped in another.
  """
  mesh = _auto_mesh(mesh)
  replicas = _over_replicas(function, in_axes, out_axes, splits=mesh.size > mesh.shape[WORKERS])
  if is_local(mesh):
    of_all = _with_axis_of_one(replicas, WORKERS)
  else:
    of_all = _over_devices(replicas, mesh, in_axes, out_axes)

  def call(*args):
    _check_states(in_axes, args)
    return of_all(*args)

  return call


def _over_devices(replicas: Callable, mesh: Mesh, in_axes, out_axes) -> Callable:
  # The types of varying axes have no rule for a mean over a manual and a vmapped axis at once.
  return jax.shard_map(
    replicas,
    mesh=mesh,
    in_specs=worker_specs(in_axes),
    out_specs=worker_specs(out_axes),
    axis_names={WORKERS},
    check_vma=False,
  )


def _auto_mesh(mesh: Mesh) -> Mesh:
  """Returns the mesh with axes of type Auto: `jax.make_mesh` makes Explicit ones by default.

  Raises:
    ValueError: it has no axis 'workers'.
  """
  if WORKERS not in mesh.axis_names:
    raise ValueError(
      f'the mesh has the axes {", ".join(map(repr, mesh.axis_names))}; expected one called '
      f'{WORKERS!r}, over which the workers are: jax.make_mesh((devices,), ({WORKERS!r},)).'
    )
  return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _check_states(axes, args) -> None:
  for axis, arg in zip(axes, args, strict=False) if isinstance(axes, tuple | list) else ():
    if isinstance(axis, DeslocState):
      check_state(arg)


def init_over_workers(
  tx: optax.GradientTransformation, params: optax.Params, mesh: Mesh, workers: int
) -> tuple[optax.Params, DeslocState]:
  """Returns the parameters and the first state of all workers, in place for a first step.

  They are new arrays, where the results of an `over_workers` step lie: both can be donated, and the
  step compiles once. The consensus is on every device, a worker's own arrays are on its own. A mesh
  axis other than 'workers' holds whole copies.

  Args:
    tx: of `desloc` or `ddp`.
    params: the first parameters, the same for all workers.
    mesh: with an axis 'workers' whose size divides the number of workers.
    workers: number of workers W.

  Returns:
    `params`, and the state with [workers, ...] where `WORKER_AXES` has 0.

  Raises:
    ValueError: the mesh has no axis 'workers', or one that W workers cannot share; or `tx` is
      wrapped in another transformation.
  """
  mesh = _auto_mesh(mesh)
  if workers < 1 or workers % mesh.shape[WORKERS]:
    raise ValueError(
      f'{workers} workers cannot share the {mesh.shape[WORKERS]} places of the mesh axis '
      f'{WORKERS!r} evenly; expected a multiple of it.'
    )
  check_state(jax.eval_shape(tx.init, params))

  def init(params):
    state = jax.vmap(lambda: tx.init(params), axis_size=workers, out_axes=WORKER_AXES)()
    return jax.tree.map(jnp.copy, params), state

  # What is over an axis of one comes back from a step as if it were not.
  axes = WORKER_AXES if mesh.shape[WORKERS] > 1 else None
  shardings = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    (PartitionSpec(), worker_specs(axes)),
    is_leaf=lambda spec: isinstance(spec, PartitionSpec),
  )
  return jax.jit(init, out_shardings=shardings)(params)


def is_local(mesh: Mesh) -> bool:
  """Whether nothing can cross workers on `mesh`: all of them share the same several devices.

  XLA's partitioner then refuses an average over the manual axis of one (JAX 0.10 to 0.12), and
  there is no need of a manual axis.
  """
  return mesh.shape[WORKERS] == 1 and mesh.size > 1


def _over_replicas(function: Callable, in_axes, out_axes, splits: bool) -> Callable:
  """Maps `function` over the workers of a device, of several devices where a worker `splits`."""
  of_many = jax.vmap(function, in_axes=in_axes, out_axes=out_axes, axis_name=REPLICAS)
  of_one = _with_axis_of_one(function, REPLICAS)

  def of_device(*args):
    sizes = set()
    _on_mapped(lambda x: sizes.add(x.shape[0]), in_axes, args)
    # Arrays come with an axis of workers, also of one. XLA updates them in place if they keep it.
    if not splits or sizes != {1}:
      return of_many(*args)
    # In a worker of several devices, XLA for TPUs would then sum gradients by all-reduces, at twice
    # the bytes, where it could scatter the sums.
    results = of_one(*_on_mapped(lambda x: x[0], in_axes, args))
    return _on_mapped(lambda x: x[None], out_axes, results)

  return of_device


def _on_mapped(change: Callable, axes, trees):
  """Returns `trees` with `change` of the arrays that are [workers, ...], by a prefix of 0 and None."""
  return jax.tree.map(
    lambda axis, tree: tree if axis is None else jax.tree.map(change, tree),
    axes,
    trees,
    is_leaf=lambda axis: axis is None,
  )


def _with_axis_of_one(function: Callable, name: str) -> Callable:
  """Binds the axis `name` to one element, which no array is mapped over."""
  mapped = jax.vmap(function, in_axes=None, out_axes=0, axis_size=1, axis_name=name)

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
