"""The mean over workers: the only thing that DES-LOC sends."""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

AxisName = str | Sequence[str]
# Up to which an array is sent with others; a longer one takes much longer than its latency anyway.
PACKED_BYTES = 2**22
Tree = TypeVar('Tree')
# Workers that share a device are a vmapped axis of `over_workers`: averages go over it too.
REPLICAS = 'desloc_replicas'


def worker_count(axis_name: AxisName) -> int:
  """Returns the number of workers along `axis_name`.

  Raises:
    ValueError: the caller is not inside `axis_name`.
  """
  names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
  try:
    return jax.lax.axis_size(names)
  except NameError as error:
    raise ValueError(
      f'the worker axis {axis_name!r} is not bound here: call update inside jax.shard_map or '
      'jax.vmap with that axis name.'
    ) from error


def all_axes(axis_name: AxisName) -> AxisName:
  """Returns the axes of the workers, with that of those on a device where `over_workers` has one."""
  names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
  try:
    jax.lax.axis_size(REPLICAS)
  except NameError:
    return axis_name
  return names if REPLICAS in names else (*names, REPLICAS)


class Share(NamedTuple):
  """How much this worker counts in a mean over workers: `weight / total`."""

  weight: jax.Array  # float32 scalar, zero where this worker does not count.
  total: jax.Array  # float32 scalar, the same on all workers; zero if none counts.


def worker_share(
  axis_name: AxisName, weights: jax.Array | None, active: jax.Array | None
) -> Share | None:
  """Returns this worker's share of a mean, None if all workers count the same.

  Args:
    axis_name: of the workers.
    weights: [workers], how much each counts, finite and >= 0; None: all the same.
    active: boolean [workers], which of them count at all; None: all.

  Raises:
    ValueError: a shape is not [workers], or no worker counts and that is known while tracing.
  """
  if weights is None and active is None:
    return None
  count = worker_count(axis_name)
  for name, value in (('weights', weights), ('active', active)):
    if value is not None and jnp.shape(value) != (count,):
      raise ValueError(
        f'{name} has shape {jnp.shape(value)}; expected one entry for each of the {count} workers.'
      )
  known = not any(isinstance(value, jax.core.Tracer) for value in (weights, active))
  lib = np if known else jnp
  weights = lib.ones(count) if weights is None else lib.asarray(weights)
  if active is not None:
    weights = lib.where(active, weights, 0.0)
  total = lib.sum(weights)
  if known and not total > 0:
    raise ValueError('no worker is active with a positive weight: there is nothing to average.')
  # The largest is one, so that weights that are all the same round nothing.
  largest = lib.max(weights)
  largest = lib.where(largest > 0, largest, 1.0)
  weights, total = jnp.asarray(weights / largest, jnp.float32), total / largest
  return Share(weights[jax.lax.axis_index(axis_name)], jnp.asarray(total, jnp.float32))


def worker_mean(tree: Tree, axis_name: AxisName, share: Share | None = None) -> Tree:
  """Returns the mean of each leaf over the workers, in its dtype and the same on each of them.

  A worker with a `share` (see `worker_share`) of zero does not count, whatever its values are. If
  none counts the mean is zero.

  Each leaf is sent in its dtype, but 8 bits and fewer as bfloat16, as no device sums them.
  """
  leaves, structure = jax.tree.flatten(tree)
  low = {i: leaf for i, leaf in enumerate(leaves) if has_low_precision(leaf)}
  others = {i: leaf for i, leaf in enumerate(leaves) if i not in low}
  means = _mean(others, axis_name, share) | _low_precision_mean(low, axis_name, share)
  return jax.tree.unflatten(structure, [means[i] for i in range(len(leaves))])


def _mean(tree: Tree, axis_name: AxisName, share: Share | None) -> Tree:
  if share is None:
    return _all_reduce(jax.lax.pmean, tree, axis_name)
  weight, total = share
  parts = jax.tree.map(lambda x: jnp.where(weight > 0, x * weight.astype(x.dtype), 0), tree)
  total = jnp.where(total > 0, total, 1.0)
  sums = _all_reduce(jax.lax.psum, parts, axis_name)
  return jax.tree.map(lambda x: x / total.astype(x.dtype), sums)


def from_one(tree: Tree, axis_name: AxisName, donates: jax.Array) -> Tree:
  """Returns the leaves of the one worker where `donates`, a boolean scalar, is true; to the bit."""

  def part(x):
    x = x.astype(jnp.int32) if x.dtype == bool else x
    return jnp.where(donates, x, jnp.zeros_like(x))

  sums = _all_reduce(jax.lax.psum, jax.tree.map(part, tree), axis_name)
  return jax.tree.map(lambda x, like: x.astype(like.dtype), sums, tree)


def _low_precision_mean(tree: Tree, axis_name: AxisName, share: Share | None) -> Tree:
  """Weighs in float32, and makes values smaller before their sum, which could overflow.

  By a power of two, which rounds nothing: workers that are all the same stay so.
  """
  weight, total = share or Share(jnp.float32(1), jnp.float32(worker_count(axis_name)))
  total = jnp.where(total > 0, total, 1.0)
  fraction, exponent = jnp.frexp(total)  # In [.5, 1).
  power = jnp.ldexp(jnp.float32(1), exponent - (fraction == 0.5))

  def part(x):
    dtype = x.dtype if jnp.finfo(x.dtype).bits == 16 else jnp.bfloat16
    x = (x.astype(jnp.float32) * (weight / power)).astype(dtype)
    return x if share is None else jnp.where(weight > 0, x, 0)

  sums = _all_reduce(jax.lax.psum, jax.tree.map(part, tree), axis_name)
  return jax.tree.map(
    lambda y, x: (y.astype(jnp.float32) * (power / total)).astype(x.dtype), sums, tree
  )


def has_low_precision(x: jax.Array) -> bool:
  """Returns whether sums of such values may overflow, and squares too: fewer than 32 bits."""
  return jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32


def at_least_float32(tree: Tree) -> Tree:
  """Returns `tree` with floats of fewer bits as float32."""
  return jax.tree.map(lambda x: x.astype(jnp.float32) if has_low_precision(x) else x, tree)


def _all_reduce(reduce: Callable, tree: Tree, axis_name: AxisName) -> Tree:
  """Returns `reduce(tree, axis_name)`, with small arrays of one dtype sent as one.

  Each message costs its latency, also where XLA calls it one all-reduce of many arrays: gloo sends
  them one after another.
  """
  leaves, structure = jax.tree.flatten(tree)
  small: dict[jnp.dtype, list[int]] = {}
  if _can_be_packed(axis_name):
    for i, leaf in enumerate(leaves):
      if leaf.size * leaf.dtype.itemsize <= PACKED_BYTES:
        small.setdefault(leaf.dtype, []).append(i)
  packs = [indices for indices in small.values() if len(indices) > 1]
  packed = [jnp.concatenate([leaves[i].ravel() for i in indices]) for indices in packs]
  alone = {i: leaf for i, leaf in enumerate(leaves) if not any(i in indices for indices in packs)}
  packed, reduced = reduce((packed, alone), axis_name)
  for pack, indices in zip(packed, packs, strict=True):
    ends = np.cumsum([leaves[i].size for i in indices])
    for i, part in zip(indices, jnp.split(pack, ends[:-1]), strict=True):
      reduced[i] = part.reshape(leaves[i].shape)
  return jax.tree.unflatten(structure, [reduced[i] for i in range(len(leaves))])


def _can_be_packed(axis_name: AxisName) -> bool:
  """Whether arrays go over a wire, and none is split over other devices, who would have to meet."""
  names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
  sizes = jax.sharding.get_abstract_mesh().shape
  across = math.prod(sizes.get(name, 1) for name in names)
  return across > 1 and across == math.prod(sizes.values())


def match_varying(tree: Tree, like: Tree) -> Tree:
  """Marks the leaves of `tree` as varying over the mesh axes that `like`'s leaves vary over.

  A mean has the same value on every worker, and under `jax.shard_map(check_vma=True)` a type that
  says so; the two branches of a conditional must agree on that type.
  """

  def cast(x, y):
    missing = tuple(jax.typeof(y).mat.varying - jax.typeof(x).mat.varying)
    return jax.lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(cast, tree, like)


def relative_distance(tree: Tree, mean: Tree) -> jax.Array:
  """Returns ||tree - mean|| / ||mean|| over all leaves, a float32 scalar; 0 if both are zero."""
  tree, mean = at_least_float32(tree), at_least_float32(mean)
  distance = optax.tree.norm(optax.tree.sub(tree, mean)).astype(jnp.float32)
  return distance / jnp.maximum(
    optax.tree.norm(mean).astype(jnp.float32), jnp.finfo('float32').tiny
  )
