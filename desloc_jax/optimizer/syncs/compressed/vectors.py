"""Trees as vectors cut into rows, so that an encoding sees blocks and not shapes.

How a tree is cut depends on its shapes only, never on the devices: results are the same on any
number of them.
"""

from collections.abc import Callable, Sequence
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P

from desloc_jax.optimizer.averaging import PACKED_BYTES
from desloc_jax.optimizer.syncs.sync import Tree


def wide(tree: Tree) -> Tree:
  """Returns zeros of the shapes of `tree`, in float32 or, where `tree` is, in float64."""
  return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), _wide_dtype(x)), tree)


def on_rows(function: Callable, block: int, known: Tree, *trees: Tree) -> tuple[Tree, ...]:
  """Calls `function(known, *rows)` with vectors of the trees' arrays as [rows, block], and returns
  trees of its results.

  Arrays of at most `PACKED_BYTES` are one vector together. If a worker has several devices, each
  gets its part of the rows, so that it sends no more than that. Of a larger array that is what it
  has where devices share the last dimension but one, as the trainer's do; else, and of small ones,
  it is moved over the links inside the worker.

  Args:
    function: returns a tuple of arrays like its rows.
    block: length of a row. The last one is filled with zeros.
    known: handed to each call as it is.
    *trees: of one structure, with floating arrays of the same shapes.

  Returns:
    Trees of float32, or of float64 where the first tree is.
  """
  leaves, structure = jax.tree.flatten(trees[0])
  columns = [leaves, *(structure.flatten_up_to(tree) for tree in trees[1:])]
  axes, devices = inner_axes()
  results = [None] * len(leaves)
  for pack in _packs(leaves):
    arrays = [[column[i] for i in pack] for column in columns]
    of_pack = _of_large if _is_large(leaves[pack[0]]) else _of_rows
    done = of_pack(function, known, arrays, block, axes, devices)
    for i, *parts in zip(pack, *done, strict=True):
      results[i] = parts
  count = len(results[0]) if results else len(trees)
  return tuple(structure.unflatten([parts[j] for parts in results]) for j in range(count))


def cut(
  tree: Tree, block: int, multiple: int
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Tree]]:
  """Returns the arrays of a tree as a list of vectors, and what makes trees of such lists.

  Args:
    tree: with floating arrays.
    block: length of a row of [rows, block].
    multiple: of which the number of rows is one. What is missing is zero.

  Returns:
    Vectors of float32, or of float64 where the tree is. The trees have their dtype.
  """
  leaves, structure = jax.tree.flatten(tree)
  packs = _packs(leaves)

  def join(vectors: Sequence[jax.Array]) -> Tree:
    parts: dict[int, jax.Array] = {}
    for pack, rows in zip(packs, vectors, strict=True):
      shapes = [jnp.shape(leaves[i]) for i in pack]
      parts |= dict(zip(pack, _split(rows, shapes), strict=True))
    return structure.unflatten([parts[i] for i in range(len(leaves))])

  dtypes = [_wide_dtype(leaves[pack[0]]) for pack in packs]
  joined = zip(packs, dtypes, strict=True)
  return [_join([leaves[i] for i in pack], dtype, block, multiple) for pack, dtype in joined], join


def over_devices(function: Callable) -> Callable:
  """Maps `function(known, *parts)` over the devices of a worker, which share the first axis."""
  return _over(inner_axes()[0], function)


def _of_rows(function, known, columns, block, axes, devices) -> list[list[jax.Array]]:
  """Joins the arrays of each column to rows, of which each device gets some."""
  shapes = [jnp.shape(x) for x in columns[0]]
  rows = [_join(arrays, _wide_dtype(columns[0][0]), block, devices) for arrays in columns]
  return [_split(x, shapes) for x in _over(axes, function)(known, *rows)]


def _of_large(function, known, columns, block, axes, devices) -> list[list[jax.Array]]:
  """Makes rows of one array a column, on each device of the part that it has if those are rows."""
  shared = max(0, jnp.ndim(columns[0][0]) - 2)
  columns = [[jnp.moveaxis(x, shared, 0)] for (x,) in columns]
  first, *_ = columns[0]

  def of_part(known, *parts):
    done = _of_rows(function, known, [[x] for x in parts], block, (), 1)
    return tuple(x for (x,) in done)

  if len(first) % devices or first.size // devices % block:
    done = _of_rows(function, known, columns, block, axes, devices)
  else:
    done = [[x] for x in _over(axes, of_part)(known, *(x for (x,) in columns))]
  return [[jnp.moveaxis(x, 0, shared)] for (x,) in done]


def _packs(leaves: Sequence[jax.Array]) -> list[list[int]]:
  """Returns which leaves are a vector: large ones alone, the small ones of a dtype together."""
  small: dict[jnp.dtype, list[int]] = {}
  large = []
  for i, leaf in enumerate(leaves):
    if _is_large(leaf):
      large.append([i])
    else:
      small.setdefault(_wide_dtype(leaf), []).append(i)
  return [*small.values(), *large]


def _is_large(leaf: jax.Array) -> bool:
  return jnp.size(leaf) * _wide_dtype(leaf).itemsize > PACKED_BYTES


def _wide_dtype(leaf: jax.Array) -> jnp.dtype:
  dtype = jnp.result_type(leaf)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f'an array of {dtype} cannot be encoded; expected floating arrays.')
  return jnp.promote_types(dtype, jnp.float32)


def _join(arrays: Sequence[jax.Array], dtype, block: int, devices: int) -> jax.Array:
  vector = jnp.concatenate([jnp.ravel(x).astype(dtype) for x in arrays])
  rows = max(1, math.ceil(vector.size / block))
  rows += -rows % devices
  return jnp.pad(vector, (0, rows * block - vector.size)).reshape(rows, block)


def _split(rows: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
  vector, start, parts = rows.ravel(), 0, []
  for shape in shapes:
    parts.append(vector[start : start + math.prod(shape)].reshape(shape))
    start += math.prod(shape)
  return parts


def inner_axes() -> tuple[tuple[str, ...], int]:
  """Returns the mesh axes inside a worker, which are not manual here, and how many devices."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind != AxisType.Manual and mesh.shape[name] > 1
  )
  return axes, math.prod(mesh.shape[name] for name in axes)


def _over(axes: tuple[str, ...], function: Callable) -> Callable:
  """Maps a function over the devices of a worker, each of which gets its part of the first axis."""
  if not axes:
    return function

  def call(known, *parts):
    return jax.shard_map(
      function,
      in_specs=(P(), *[P(axes)] * len(parts)),
      out_specs=P(axes),
      axis_names=set(axes),
      check_vma=False,
    )(known, *parts)

  return call
