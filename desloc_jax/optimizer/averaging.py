"""The mean over workers: the only thing that DES-LOC sends."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

AxisName = str | Sequence[str]
Tree = TypeVar('Tree')


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
  weights = jnp.asarray(weights, jnp.float32)
  return Share(weights[jax.lax.axis_index(axis_name)], jnp.asarray(total, jnp.float32))


def worker_mean(tree: Tree, axis_name: AxisName, share: Share | None = None) -> Tree:
  """Returns the mean of each leaf over the workers, in its dtype and the same on each of them.

  A worker with a `share` (see `worker_share`) of zero does not count, whatever its values are. If
  none counts the mean is zero.
  """
  if share is None:
    return jax.lax.pmean(tree, axis_name)
  weight, total = share
  parts = jax.tree.map(lambda x: jnp.where(weight > 0, x * weight.astype(x.dtype), 0), tree)
  total = jnp.where(total > 0, total, 1.0)
  return jax.tree.map(lambda x: x / total.astype(x.dtype), jax.lax.psum(parts, axis_name))


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
  distance = optax.tree.norm(optax.tree.sub(tree, mean)).astype(jnp.float32)
  return distance / jnp.maximum(
    optax.tree.norm(mean).astype(jnp.float32), jnp.finfo('float32').tiny
  )
