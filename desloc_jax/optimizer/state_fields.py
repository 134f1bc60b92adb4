"""Names the floating arrays inside any optax state, so that each can have a period of its own."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey
import optax

KeyPath = tuple[Any, ...]

# Arrays that an optimizer keeps in its state although they never change: nothing to average.
CONSTANTS = frozenset({'ns_coeffs'})  # Of optax.contrib.muon.


def label_fields(inner_state: optax.OptState, params: optax.Params) -> list[str | None]:
  """Returns the field name of every leaf of `inner_state`, in flattening order.

  The name is that of the innermost named container above the leaf, not counting the names inside
  the parameter tree itself: `mu` for the leaf `inner_state[1].inner_states['adam'].mu['w']`.
  Step counts, random keys and other integer leaves, and scalars that belong to no parameter (an
  injected learning rate), are `None`: they are never averaged. So are constants.
  """
  param_shapes = {path: jnp.shape(x) for path, x in jax.tree.leaves_with_path(params)}
  return [
    _field_name(path, leaf, param_shapes) for path, leaf in jax.tree.leaves_with_path(inner_state)
  ]


def select_fields(
  inner_state: optax.OptState, params: optax.Params, names: Collection[str] | None = None
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], optax.OptState]]:
  """Returns the leaves of the fields `names` (None: of all), and a function that puts others back."""
  labels = label_fields(inner_state, params)
  return _select(
    inner_state,
    [
      i for i, label in enumerate(labels) if label is not None and (names is None or label in names)
    ],
  )


def select_others(
  inner_state: optax.OptState, params: optax.Params
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], optax.OptState]]:
  """Returns as `select_fields` does the leaves of no field that all workers can share.

  They are counts, flags, and numbers of the whole model. Random keys are not among them.
  """

  def is_key(leaf) -> bool:
    dtype = jnp.result_type(leaf)
    return any(jnp.issubdtype(dtype, kind) for kind in (jax.dtypes.prng_key, jnp.unsignedinteger))

  leaves, labels = jax.tree.leaves(inner_state), label_fields(inner_state, params)
  labelled = enumerate(zip(leaves, labels, strict=True))
  return _select(
    inner_state, [i for i, (leaf, label) in labelled if label is None and not is_key(leaf)]
  )


def _select(tree, places: Sequence[int]):
  leaves, treedef = jax.tree.flatten(tree)

  def put_back(fields: Sequence[jax.Array]) -> optax.OptState:
    replaced = dict(zip(places, fields, strict=True))
    return jax.tree.unflatten(treedef, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)])

  return [leaves[i] for i in places], put_back


def check_fields(labels: Collection[str | None], names: Collection[str]) -> None:
  """Checks that `names` (besides `params`) and the labels of a state are the same set.

  Raises:
    ValueError: a floating field has no entry in `names`, or a name matches no field. The message
      lists the fields that were found.
  """
  found = {label for label in labels if label is not None}
  named = set(names) - {'params'} - CONSTANTS
  listing = ', '.join(sorted(found)) or 'none'
  if 'params' in found:
    raise ValueError(
      "the inner state has a field named 'params', which periods reserves for the parameters."
    )
  if missing := sorted(found - named):
    raise ValueError(
      f'periods has no entry for the inner state field(s) {", ".join(missing)}: give each a '
      f'number of steps, or None for never averaged. Fields found: {listing}.'
    )
  if unknown := sorted(named - found):
    raise ValueError(
      f'periods names {", ".join(unknown)}, which the inner optimizer does not have. '
      f'Fields found: {listing}.'
    )


def _field_name(
  path: KeyPath, leaf: jax.Array, param_shapes: Mapping[KeyPath, tuple[int, ...]]
) -> str | None:
  if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
    return None
  if jnp.ndim(leaf) == 0:
    # The state of a parameter that is a scalar itself; any other scalar belongs to no parameter.
    start = next((i for i in range(len(path) + 1) if param_shapes.get(path[i:]) == ()), None)
    if start is None:
      return None
  else:
    # What is before the parameter's own path is the optimizer's, what may follow it too (one array
    # an axis, say).
    start = next((i for i, j in _slices(len(path)) if path[i:j] in param_shapes), None)
  names = [_key_name(key) for key in path[:start] if isinstance(key, GetAttrKey | DictKey)]
  name = names[-1] if names else jax.tree_util.keystr(path[:start])
  return None if name in CONSTANTS else name


def _slices(length: int) -> Iterator[tuple[int, int]]:
  """Yields the ends of the non-empty slices of a path, from its left and the longest first."""
  return ((i, j) for i in range(length) for j in range(length, i, -1))


def _key_name(key: GetAttrKey | DictKey) -> str:
  return key.name if isinstance(key, GetAttrKey) else str(key.key)
