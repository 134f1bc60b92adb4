"""The arrays of a training state by name, and reading single ones of a checkpoint.

A name is the path in the state with dots: `optimizer.inner.1.0.mu.embed`. No optax container type
is part of it. The state of the inner optimizer is under `optimizer.inner.` for every method.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import pathlib

import jax
import numpy as np
import tensorstore as ts

from desloc_jax.checkpoints.parts import Box, hull, overlap, Parts, PartSums
from desloc_jax.checkpoints.read_ahead import ReadAhead
from desloc_jax.checkpoints.train_state import TrainState

# Arrays of [workers, ...], unless the method has shared moments.
PER_WORKER = (
  'optimizer.params.',
  'optimizer.inner.',
  'optimizer.drift.',
  'optimizer.health.',
  'optimizer.memory.own.',
  'optimizer.flight.sent.',
)
# Decoded chunks that wait to be cut, at most; one at a time where they are larger.
_AHEAD_BYTES = 2**24
_READERS, _COPIERS = 8, 4  # Threads of a process; many processes share a disk.
_INDEX_BYTES = 2**24  # Of the checkpoint's table of chunks, which all arrays look up.

Pending = Callable[[], jax.Array]  # Returns the array when it is read.


def named_leaves(state: TrainState) -> dict[str, jax.Array]:
  """Returns the leaves of a state, arrays or shapes, by name."""
  names = {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree.leaves_with_path(state)
  }
  if jax.tree.leaves(state.optimizer.params):
    return names
  # DDP keeps the one state of its optimizer where others keep that of the outer one.
  return {name.replace('optimizer.outer.', 'optimizer.inner.'): x for name, x in names.items()}


class LeafReader:
  """Reads arrays of a checkpoint into any sharding, without more in memory than is asked for.

  Each chunk is read and decoded once, and cut in memory for the devices of this process that need
  a part of it. Chunks of several arrays are read at the same time, up to a number of bytes.
  """

  def __init__(self, folder: pathlib.Path, ahead_bytes: int = _AHEAD_BYTES):
    """Opens the folder of a state that orbax saved."""
    self._folder = folder
    self._context = ts.Context(
      {
        'cache_pool': {'total_bytes_limit': 0},
        'cache_pool#index': {'total_bytes_limit': _INDEX_BYTES},
        'file_io_concurrency': {'limit': _READERS},
        'data_copy_concurrency': {'limit': _COPIERS},
      }
    )
    self._ahead = ReadAhead(ahead_bytes)
    self._open = functools.cache(self._open)

  def read(self, name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns an array as it is, in the sharding of `like`; each device gets its part only."""
    return self.start(name, like)()

  def start(self, name: str, like: jax.ShapeDtypeStruct) -> Pending:
    """Starts to `read`; returns what waits for it and gives the array."""
    store = self._open(name)
    if store.shape != like.shape:
      raise ValueError(f'{name} is {store.shape}, not {like.shape}')
    return self._start(store, (None,), Parts(like))

  def read_mean(self, name: str, rows: Sequence[int], like: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns the mean over these rows of [workers, ...], summed in at least float32."""
    return self.start_mean(name, rows, like)()

  def start_mean(self, name: str, rows: Sequence[int], like: jax.ShapeDtypeStruct) -> Pending:
    """Starts to `read_mean`; rows are read one after another, in the order of their sum."""
    return self._start(self._open(name), rows, PartSums(like, len(rows)))

  def read_if_same(
    self, name: str, rows: Sequence[int], like: jax.ShapeDtypeStruct
  ) -> jax.Array | None:
    """Returns the rows of [workers, ...] as one if they are all the same, else None.

    Of counts (signed integers, one a worker) that differ it is the largest: who was restarted, or
    came later, has seen fewer steps than those that were there all the time.
    """
    store = self._open(name)
    values = [store[row].read().result() for row in rows]
    if np.issubdtype(like.dtype, np.signedinteger) and not like.shape:
      values = [max(values)]
    first, *others = values
    if not all(np.array_equal(first, other) for other in others):
      return None
    return jax.make_array_from_callback(
      like.shape, like.sharding, lambda index: np.asarray(first[index], like.dtype)
    )

  def _start(self, store: ts.TensorStore, rows: Sequence[int | None], parts: Parts) -> Pending:
    """Queues the chunks of these rows, None for all of the array, that this process needs."""
    for row in rows:
      view = store if row is None else store[row]
      for box in _boxes(view, parts.bounds):
        self._ahead.add(
          size=_size(box) * store.dtype.numpy_dtype.itemsize,
          start=functools.partial(_read, view, box),
          take=functools.partial(parts.take, box),
        )
    last = self._ahead.added

    def wait() -> jax.Array:
      self._ahead.run_until(last)
      return parts.array()

    return wait

  def _open(self, name: str) -> ts.TensorStore:
    kvstore = {
      'driver': 'ocdbt',
      'base': {'driver': 'file', 'path': f'{self._folder}/'},
      'path': f'{name}/',
      'cache_pool': 'cache_pool#index',
    }
    # A missing chunk is damage, not zeros.
    spec = {'driver': 'auto', 'kvstore': kvstore}
    store = ts.open(spec, context=self._context, open=True, read=True).result()
    spec = store.spec().to_json() | {'fill_missing_data_reads': False}
    return ts.open(spec, context=self._context, open=True, read=True).result()


def _boxes(view: ts.TensorStore, bounds: Sequence[Box]) -> Iterator[Box]:
  """Yields the part of each chunk that the parts within `bounds` need, each chunk once."""
  chunk = view.chunk_layout.read_chunk.shape or view.shape
  cells = [()]
  for axis, (size, step) in enumerate(zip(view.shape, chunk, strict=True)):
    step = step or size or 1
    needed = sorted(
      {i for b in bounds if b[axis][0] < b[axis][1]
       for i in range(b[axis][0] // step, -(-b[axis][1] // step))}
    )  # fmt: skip
    cells = [(*cell, (i * step, min((i + 1) * step, size))) for cell in cells for i in needed]
  for cell in cells:
    shares = [share for b in bounds if (share := overlap(cell, b)) is not None]
    if shares:
      yield hull(shares)


def _size(box: Box) -> int:
  return int(np.prod([stop - start for start, stop in box], dtype=np.int64))


def _read(view: ts.TensorStore, box: Box) -> ts.Future:
  return view[tuple(slice(start, stop) for start, stop in box)].read()
