"""Values that the processes of a run tell each other, besides what training averages.

Few and small: each is one all-gather over the links between workers, which may be slow. All
processes must call the same functions in the same order.
"""

from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Sharding
import numpy as np

from desloc_jax.hosts.processes import several

Index = tuple[slice, ...]


def place(array: np.ndarray, sharding: Sharding) -> jax.Array:
  """Returns an array that every process has whole, on the devices; each takes its part."""
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(tree: Any) -> Any:
  """Returns a tree of arrays in NumPy, whole on every process."""
  return fetch_and_ask(tree, False)[0]


def fetch_and_ask(tree: Any, flag: bool) -> tuple[Any, bool]:
  """Returns what `fetch` does, and whether `flag` is true on some process.

  What is on other processes comes in one exchange, however many arrays there are.
  """
  if not several():
    return jax.device_get(tree), flag
  leaves, structure = jax.tree.flatten(tree)
  values = [_local_values(leaf) for leaf in leaves]
  parts = [
    (process, values[i][index])
    for i, leaf in enumerate(leaves)
    if not _is_here(leaf)
    for process, index in _owners(leaf)
  ]
  sizes = [0] * jax.process_count()
  for process, part in parts:
    sizes[process] += part.nbytes
  own = b''.join(part.tobytes() for process, part in parts if process == jax.process_index())
  messages = _all_gather(bytes([flag]) + own, 1 + max(sizes))
  read = [1] * len(messages)
  for process, part in parts:
    content = messages[process][read[process] : read[process] + part.nbytes]
    part[...] = np.frombuffer(content, part.dtype).reshape(part.shape)
    read[process] += part.nbytes
  return jax.tree.unflatten(structure, values), any(message[0] for message in messages)


def exchange_text(text: str) -> list[str]:
  """Returns the texts of all processes, by their index."""
  if not several():
    return [text]
  sizes = multihost_utils.process_allgather(np.array([len(text.encode())], np.int32))[:, 0]
  messages = _all_gather(text.encode(), max(1, *sizes))
  return [message[:size].decode() for message, size in zip(messages, sizes, strict=True)]


def anywhere(flag: bool) -> bool:
  """Returns whether `flag` is true on some process."""
  return fetch_and_ask((), flag)[1]


def wait_for_all() -> None:
  """Returns when all processes have called it."""
  if several():
    multihost_utils.sync_global_devices('wait')


def _all_gather(message: bytes, size: int) -> list[bytes]:
  """Returns the messages of all processes, filled up to `size` bytes."""
  filled = np.zeros(size, np.uint8)
  filled[: len(message)] = np.frombuffer(message, np.uint8)
  return [row.tobytes() for row in multihost_utils.process_allgather(filled)]


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
