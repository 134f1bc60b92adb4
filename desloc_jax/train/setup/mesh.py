"""Where workers and parameters live: the mesh `workers` x `fsdp`, and shardings by shape."""

from collections.abc import Sequence
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
import numpy as np

from desloc_jax.errors import UserError
from desloc_jax.hosts.aside import step_devices
from desloc_jax.hosts.peers import peers
from desloc_jax.model.splitting import BATCH_AXIS as FSDP, split_dimension
from desloc_jax.optimizer.over_workers import WORKERS

# Parameters under this name are stacked over layers, and a scan takes one layer at a time.
STACKED = 'blocks'


def make_mesh(
  workers: int,
  fsdp: int,
  devices: Sequence[jax.Device] | None = None,
  straddle: bool = False,
) -> Mesh:
  """Returns the mesh `workers` x `fsdp` over all devices, those of a worker near each other.

  Args:
    workers: number of workers W; those that share a device are stepped by one vmapped program.
    fsdp: devices that share one worker; 0 takes as many as there are.
    devices: default all of them.
    straddle: whether a worker may have devices with slow links between them.

  Raises:
    UserError: the devices cannot be shared out evenly, or a worker would straddle slow links.
  """
  devices = step_devices() if devices is None else devices
  count = len(devices)
  if fsdp == 0:
    fsdp = max(1, count // workers)
  if count % fsdp or workers % (count // fsdp):
    fitting = [f for f in range(1, count + 1) if count % f == 0 and workers % (count // f) == 0]
    hint = (
      f'mesh.fsdp can be {_listing(fitting)}'
      if fitting
      else (f'use a number of workers that shares {count} devices evenly, or fewer devices')
    )
    raise UserError(
      f'{workers} workers with mesh.fsdp={fsdp} do not share {count} devices evenly: workers must '
      f'be a multiple of devices / mesh.fsdp; {hint}.'
    )
  rows = order_devices(devices, fsdp, straddle)
  return Mesh(rows, (WORKERS, FSDP), axis_types=(AxisType.Auto,) * 2)


def order_devices(devices: Sequence[jax.Device], fsdp: int, straddle: bool = False) -> np.ndarray:
  """Returns the devices [rows, fsdp]; a row is of one host or slice, in the order of its wiring.

  Raises:
    UserError: a row would be of several, and `straddle` does not permit it.
  """
  together: dict[tuple[str, int], list[jax.Device]] = {}
  for device in devices:
    together.setdefault(_fast_links(device), []).append(device)
  if odd := [place for place, there in together.items() if len(there) % fsdp]:
    if not straddle:
      (what, index), size = odd[0], len(together[odd[0]])
      raise UserError(
        f'mesh.fsdp={fsdp} devices of a worker would straddle slow links: {what} {index} has {size} '
        f'devices. Use more workers, mesh.fsdp={math.gcd(*map(len, together.values()))}, or permit '
        'it by --config.mesh.straddle=True.'
      )
    near = sorted(devices, key=lambda device: (*_fast_links(device), device.id))
    return np.asarray(near).reshape(-1, fsdp)
  blocks = [
    mesh_utils.create_device_mesh((len(there) // fsdp, fsdp), there, allow_split_physical_axes=True)
    for _, there in sorted(together.items())
  ]
  return np.concatenate(blocks)


def _fast_links(device: jax.Device) -> tuple[str, int]:
  """Returns the place, by kind and number, within which devices have fast links to each other."""
  if device.platform == 'cpu':  # Between processes these talk over TCP, on one host too.
    return 'process', device.process_index
  place = getattr(device, 'slice_index', None)  # TPU: of the slice. GPU: of the host.
  if place is None and device.platform == 'tpu':
    place = 0  # All are of one slice.
  return ('host', device.process_index) if place is None else ('slice', place)


def platform(mesh: Mesh) -> str:
  """Returns 'cpu', 'gpu' or 'tpu'."""
  return mesh.devices.flat[0].platform


def local_workers(mesh: Mesh, workers: int) -> range:
  """Returns the workers that have devices of this process.

  Raises:
    UserError: it has none.
  """
  rows = [
    row
    for row, devices in enumerate(mesh.devices)
    if any(device.process_index == peers().index for device in devices)
  ]
  if not rows:
    raise UserError(f'process {peers().index} has no device of this run.')
  a_row = workers // len(mesh.devices)
  return range(rows[0] * a_row, (rows[-1] + 1) * a_row)


def place(array: np.ndarray, sharding: Sharding) -> jax.Array:
  """Returns an array that every process has whole, on the devices; each takes its part."""
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def shardings(mesh: Mesh, tree, worker_axes):
  """Returns a NamedSharding for every leaf of `tree`.

  Args:
    mesh: from `make_mesh`.
    tree: arrays or shapes.
    worker_axes: a tree prefix of `tree`: 0 where leaves are [workers, ...], None where they are the
      same for all workers.
  """

  def of_subtree(axis, subtree):
    return jax.tree.map_with_path(
      lambda path, leaf: NamedSharding(mesh, _spec(path, leaf.shape, axis, mesh)), subtree
    )

  return jax.tree.map(of_subtree, worker_axes, tree, is_leaf=lambda axis: axis is None)


def _spec(path, shape: tuple[int, ...], worker_axis: int | None, mesh: Mesh) -> PartitionSpec:
  first = 0 if worker_axis is None else 1
  spec: list[str | None] = [None] * len(shape)
  if worker_axis is not None:
    spec[0] = WORKERS
  # A key is one of the tree, or the dotted path of a parameter.
  stacked = any(STACKED in str(getattr(key, 'key', '')).split('.') for key in path)
  first += stacked
  if (split := split_dimension(shape[first:], mesh.shape[FSDP])) is not None:
    spec[first + split] = FSDP
  return PartitionSpec(*spec)


def _listing(numbers: Sequence[int]) -> str:
  return ' or '.join(map(str, numbers))
