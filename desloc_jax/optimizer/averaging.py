"""The mean over workers: the only thing that DES-LOC sends."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
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


def worker_mean(tree: Tree, axis_name: AxisName) -> Tree:
  """Returns the mean of each leaf over the workers, in its dtype and the same on each of them."""
  return jax.lax.pmean(tree, axis_name)


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
