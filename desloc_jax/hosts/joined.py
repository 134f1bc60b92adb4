"""The processes of a run of several, by `jax.distributed`."""

from collections.abc import Iterator
import itertools
from typing import Any, NoReturn

import jax
from jax._src import distributed  # Its client has no public name.
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from desloc_jax.hosts import ending
from desloc_jax.hosts.aside import first_devices
from desloc_jax.hosts.board import SharedBoard
from desloc_jax.hosts.peers import Peers

# Texts of the errors that a lost process causes, of types that vary: gloo, NCCL, coordination.
_LOST = (
  'Gloo',
  'NCCL',
  'coordination service',
  'CoordinationService',
  'heartbeat',
  'Socket closed',
)
Index = tuple[slice, ...]


class Joined(Peers):
  """This process and others. Each exchange is one or two all-gathers."""

  def __init__(self, count: int, index: int):
    self.count, self.index = count, index
    self._boards = itertools.count()

  def _gather_texts(self, text: str) -> list[str]:
    message = text.encode()
    sizes = [int(row[0]) for row in _rows_of_all(np.array([len(message)], np.int32))]
    messages = _all_gather(message, max(1, *sizes))
    return [message[:size].decode() for message, size in zip(messages, sizes, strict=True)]

  def fetch(self, tree: Any) -> Any:
    """What is on other processes comes in one exchange, however many arrays there are."""
    leaves, structure = jax.tree.flatten(tree)
    values = [_local_values(leaf) for leaf in leaves]
    parts = [
      (process, values[i][index])
      for i, leaf in enumerate(leaves)
      if not _is_here(leaf)
      for process, index in _owners(leaf)
    ]
    sizes = [0] * self.count
    for process, part in parts:
      sizes[process] += part.nbytes
    if parts:
      own = b''.join(part.tobytes() for process, part in parts if process == self.index)
      messages = _all_gather(own, max(1, *sizes))
    read = [0] * self.count
    for process, part in parts:
      content = messages[process][read[process] : read[process] + part.nbytes]
      part[...] = np.frombuffer(content, part.dtype).reshape(part.shape)
      read[process] += part.nbytes
    return jax.tree.unflatten(structure, values)

  def wait_for_all(self) -> None:
    _all_gather(b'', 1)

  def make_board(self) -> SharedBoard:
    client = distributed.global_state.client
    return SharedBoard(self.count, self.index, next(self._boards), client)

  def lost_by(self, error: BaseException | None) -> bool:
    return error is not None and (
      any(text in str(error) for text in _LOST)
      or self.lost_by(error.__cause__ or error.__context__)
    )

  def end(self, code: int, text: str) -> NoReturn:
    ending.leave(code, text)


def _all_gather(message: bytes, size: int) -> list[bytes]:
  """Returns the messages of all processes, filled up to `size` bytes."""
  filled = np.zeros(size, np.uint8)
  filled[: len(message)] = np.frombuffer(message, np.uint8)
  return [row.tobytes() for row in _rows_of_all(filled)]


def _rows_of_all(row: np.ndarray) -> np.ndarray:
  """Returns [processes, ...]: the array of each process.

  One device of each takes part. JAX's own all-gather takes all, and would wait for those on which
  an average is under way.
  """
  mesh = Mesh(np.array(first_devices()), ('processes',))
  shape = (len(mesh.devices), *row.shape)
  rows = jax.make_array_from_process_local_data(
    NamedSharding(mesh, PartitionSpec('processes')), row[None], shape
  )
  gather = jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))
  return np.asarray(gather(rows).addressable_data(0))


def _same(rows: jax.Array) -> jax.Array:
  return rows


def _is_here(leaf: Any) -> bool:
  return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def _local_values(leaf: Any) -> np.ndarray:
  """Returns the values of `leaf` that this process has, the others undefined."""
  if not isinstance(leaf, jax.Array):
    return np.asarray(leaf)
  if _is_here(leaf):
    return np.asarray(leaf.addressable_data(0) if leaf.is_fully_replicated else leaf)
  values = np.empty(leaf.shape, leaf.dtype)
  for shard in leaf.addressable_shards:
    values[shard.index] = np.asarray(shard.data)
  return values


def _owners(leaf: jax.Array) -> Iterator[tuple[int, Index]]:
  """Yields each part of `leaf` with a process that has it, in an order that all agree on."""
  seen = set()
  places = leaf.sharding.devices_indices_map(leaf.shape).items()
  for device, index in sorted(places, key=lambda place: place[0].id):
    bounds = tuple((part.start, part.stop) for part in index)
    if bounds not in seen:
      seen.add(bounds)
      yield device.process_index, index
