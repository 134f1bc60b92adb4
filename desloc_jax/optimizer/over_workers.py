"""Runs one worker's program on all workers, on any number of devices down to one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import optax

from desloc_jax.optimizer import state_fields
from desloc_jax.optimizer.averaging import REPLICAS
from desloc_jax.optimizer.state import check_state, DeslocState, WORKER_AXES

WORKERS = 'workers'
AXIS_NAMES = (WORKERS, REPLICAS)


def over_workers(
  function: Callable, mesh: Mesh, in_axes: Any, out_axes: Any, axis: str = WORKERS
) -> Callable:
  """Maps `function` of one worker over all: over devices by shard_map, and on each by vmap.

  The program is manual over the mesh axis of the workers, so that nothing crosses it but what
  `function` writes; any other mesh axis stays as it is, and XLA shards each worker over it. Axes that
  are Explicit count as Auto ones inside.

  Args:
    function: of one worker. `desloc(..., axis_name=axis)` in it averages over all workers, those that
      share a device too.
    mesh: with an axis `axis` whose size divides the number of workers.
    in_axes: a prefix of the arguments: 0 where they are [workers, ...], None where they are not.
    out_axes: likewise, of the results.
    axis: the mesh axis of the workers.

  Raises:
    ValueError: the mesh has no such axis; or, when called, an argument is not what its axes
      are for, as the state of a transformation that is wrapped in another.
  """
  mesh = _auto_mesh(mesh, axis)
  replicas = _over_replicas(function, in_axes, out_axes, splits=mesh.size > mesh.shape[axis])
  if is_local(mesh, axis):
    of_all = _with_axis_of_one(replicas, axis)
  else:
    of_all = _over_devices(replicas, mesh, in_axes, out_axes, axis)

  def call(*args):
    _check_states(in_axes, args)
    return of_all(*args)

  return call


def _over_devices(replicas: Callable, mesh: Mesh, in_axes, out_axes, axis: str) -> Callable:
  # The types of varying axes have no rule for a mean over a manual and a vmapped axis at once.
  return jax.shard_map(
    replicas,
    mesh=mesh,
    in_specs=worker_specs(in_axes, axis),
    out_specs=worker_specs(out_axes, axis),
    axis_names={axis},
    check_vma=False,
  )


def _auto_mesh(mesh: Mesh, axis: str) -> Mesh:
  """Returns the mesh with axes of type Auto: `jax.make_mesh` makes Explicit ones by default.

  Raises:
    ValueError: it has no such axis.
  """
  if axis not in mesh.axis_names:
    raise ValueError(
      f'the mesh has the axes {", ".join(map(repr, mesh.axis_names))}; expected one called '
      f'{axis!r}, over which the workers are: jax.make_mesh((devices,), ({axis!r},)).'
    )
  return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _check_states(axes, args) -> None:
  for axis, arg in zip(axes, args, strict=False) if isinstance(axes, tuple | list) else ():
    if isinstance(axis, DeslocState):
      check_state(arg)


def init_over_workers(
  tx: optax.GradientTransformation,
  params: optax.Params,
  mesh: Mesh,
  workers: int,
  axis: str = WORKERS,
) -> tuple[optax.Params, DeslocState]:
  """Returns the parameters and the first state of all workers, in place for a first step.

  They are new arrays, where the results of an `over_workers` step lie: both can be donated, and the
  step compiles once. See `shardings_over_workers`.

  Args:
    tx: of `desloc` or `ddp`.
    params: the first parameters, the same for all workers.
    mesh: with an axis `axis` whose size divides the number of workers.
    workers: number of workers W.
    axis: the mesh axis of the workers.

  Returns:
    `params`, and the state with [workers, ...] where `WORKER_AXES` has 0.

  Raises:
    ValueError: the mesh has no such axis, or one that W workers cannot share; or `tx` is wrapped in
      another transformation.
  """
  shardings = shardings_over_workers(tx, params, mesh, workers, axis)

  def init(params):
    return jax.tree.map(jnp.copy, params), _init(tx, params, workers)

  return jax.jit(init, out_shardings=shardings)(params)


def shardings_over_workers(
  tx: optax.GradientTransformation,
  params: optax.Params,
  mesh: Mesh,
  workers: int,
  axis: str = WORKERS,
) -> tuple[Any, DeslocState]:
  """Returns where the parameters and the state of all workers lie, as trees of `NamedSharding`.

  The consensus is on every worker's devices, a worker's own arrays are on its own. Parameters that
  are placed over other axes of the mesh, as by `NamedSharding(mesh, PartitionSpec('fsdp'))`, are so
  within each worker, and what belongs to one in the state is placed like it.

  Args and Raises: as `init_over_workers`.
  """
  mesh = _auto_mesh(mesh, axis)
  if workers < 1 or workers % mesh.shape[axis]:
    raise ValueError(
      f'{workers} workers cannot share the {mesh.shape[axis]} places of the mesh axis '
      f'{axis!r} evenly; expected a multiple of it.'
    )
  check_state(jax.eval_shape(tx.init, params))
  specs = {path: _spec_within(x, mesh, axis) for path, x in jax.tree.leaves_with_path(params)}
  shapes = {path: jnp.shape(x) for path, x in jax.tree.leaves_with_path(params)}
  state = jax.eval_shape(lambda: _init(tx, params, workers))
  # What is over an axis of one comes back from a step as if it were not.
  first = axis if mesh.shape[axis] > 1 else None

  def sharding(path, leaf, is_own):
    own = (first,) if is_own else ()
    parameter = state_fields.parameter_of(path, specs.keys())
    alike = parameter is not None and leaf.shape[is_own:] == shapes[parameter]
    spec = PartitionSpec(*own, *specs[parameter]) if alike else PartitionSpec(*own)
    return NamedSharding(mesh, PartitionSpec() if not any(spec) else spec)

  is_own = jax.tree.map(
    lambda axis, tree: jax.tree.map(lambda _: axis is not None, tree),
    WORKER_AXES,
    state,
    is_leaf=lambda axis: axis is None,
  )
  placed = jax.tree.map_with_path(lambda path, _: NamedSharding(mesh, specs[path]), params)
  return placed, jax.tree.map_with_path(sharding, state, is_own)


def _init(tx: optax.GradientTransformation, params: optax.Params, workers: int) -> DeslocState:
  return jax.vmap(lambda: tx.init(params), axis_size=workers, out_axes=WORKER_AXES)()


def _spec_within(x, mesh: Mesh, axis: str) -> PartitionSpec:
  """Returns how a parameter is placed over the devices of a worker."""
  spec = getattr(getattr(x, 'sharding', None), 'spec', PartitionSpec())
  known = {*mesh.axis_names} - {axis}
  names = lambda part: part if isinstance(part, tuple) else (part,)
  fits = all(name is None or name in known for part in spec for name in names(part))
  return spec if fits else PartitionSpec()


def is_local(mesh: Mesh, axis: str = WORKERS) -> bool:
  """Whether nothing can cross workers on `mesh`: all of them share the same several devices.

  XLA's partitioner then refuses an average over the manual axis of one (JAX 0.10 to 0.12), and
  there is no need of a manual axis.
  """
  return mesh.shape[axis] == 1 and mesh.size > 1


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


def worker_specs(axes, name: str = WORKERS):
  """Returns the `jax.shard_map` specs, manual over workers only, for a prefix of 0 and None."""
  return jax.tree.map(
    lambda axis: PartitionSpec() if axis is None else PartitionSpec(name),
    axes,
    is_leaf=lambda axis: axis is None,
  )
