"""The arrays of a training state by name, and reading single ones of a checkpoint.

A name is the path in the state with dots: `optimizer.inner.1.0.mu.embed`. No optax container type
is part of it. The state of the inner optimizer is under `optimizer.inner.` for every method.
"""

from collections.abc import Sequence
import functools
import pathlib

import jax
from jax.sharding import Sharding
import numpy as np
import tensorstore as ts

from desloc_jax.train.step import TrainState

# Arrays of [workers, ...], unless the method has shared moments.
PER_WORKER = ('optimizer.params.', 'optimizer.inner.', 'optimizer.drift.', 'optimizer.health.')


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
  """Reads arrays of a checkpoint into any sharding, without more in memory than is asked for."""

  def __init__(self, folder: pathlib.Path):
    """Opens the folder of a state that orbax saved."""
    self._folder = folder
    self._context = ts.Context({'cache_pool': {'total_bytes_limit': 0}})

  def read(self, name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns an array as it is, in the sharding of `like`; each device gets its part only."""
    store = self._open(name)
    if store.shape != like.shape:
      raise ValueError(f'{name} is {store.shape}, not {like.shape}')
    return _assemble(like, lambda index: store[index].read().result())

  def read_mean(self, name: str, rows: Sequence[int], like: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns the mean over these rows of [workers, ...], summed in at least float32.

    One row of a device's part is in memory at a time, and their sum.
    """
    store = self._open(name)

    def mean_of(index):
      dtype = np.promote_types(like.dtype, np.float32)
      total = 0
      for row in rows:
        total = total + store[(row, *index)].read().result().astype(dtype)
      return total / len(rows)

    return _assemble(like, mean_of)

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
    return _assemble(like, lambda index: first[index])

  def _open(self, name: str) -> ts.TensorStore:
    kvstore = {
      'driver': 'ocdbt',
      'base': {'driver': 'file', 'path': f'{self._folder}/'},
      'path': f'{name}/',
    }
    # A missing chunk is damage, not zeros.
    spec = {'driver': 'auto', 'kvstore': kvstore}
    store = ts.open(spec, context=self._context, open=True, read=True).result()
    spec = store.spec().to_json() | {'fill_missing_data_reads': False}
    return ts.open(spec, context=self._context, open=True, read=True).result()


def _assemble(like: jax.ShapeDtypeStruct, read) -> jax.Array:
  sharding: Sharding = like.sharding

  @functools.cache  # Devices that hold the same part share one read.
  def part(bounds):
    index = tuple(slice(start, stop) for start, stop in bounds)
    return np.asarray(read(index), like.dtype)

  def callback(index):
    return part(tuple(s.indices(size)[:2] for s, size in zip(index, like.shape, strict=True)))

  return jax.make_array_from_callback(like.shape, sharding, callback)
