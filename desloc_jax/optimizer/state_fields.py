"""Names the floating arrays inside any optax state, so that each can have a period of its own."""

from collections.abc import Collection
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
  param_paths = {path for path, _ in jax.tree.leaves_with_path(params)}
  return [
    _field_name(path, leaf, param_paths) for path, leaf in jax.tree.leaves_with_path(inner_state)
  ]


def check_fields(labels: Collection[str | None], names: Collection[str]) -> None:
  """Checks that `names` (besides `params`) and the labels of a state are the same set.

  Raises:
    ValueError: a floating field has no entry in `names`, or a name matches no field. The message
      lists the fields that were found.
  """
  found = {label for label in labels if label is not None}
  named = set(names) - {'params'} - CONSTANTS
  listing = ', '.join(sorted(found)) or 'none'
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


def _field_name(path: KeyPath, leaf: jax.Array, param_paths: Collection[KeyPath]) -> str | None:
  if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
    return None
  # The longest parameter path that ends this path: what is before it is the optimizer's own.
  start = next((i for i in range(len(path) + 1) if path[i:] in param_paths), None)
  if start is None and jnp.ndim(leaf) == 0:
    return None
  names = [_key_name(key) for key in path[:start] if isinstance(key, GetAttrKey | DictKey)]
  name = names[-1] if names else jax.tree_util.keystr(path[:start])
  return None if name in CONSTANTS else name


def _key_name(key: GetAttrKey | DictKey) -> str:
  return key.name if isinstance(key, GetAttrKey) else str(key.key)
