"""Names the floating arrays inside any optax state, so that each can have a period of its own."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey
import optax

KeyPath = tuple[Any, ...]
Fields = Mapping[str, jax.Array]  # By path, in flattening order.

# What is averaged beside state fields: the parameters, and their mean that gossip publishes.
MODELS = frozenset({'params', 'consensus'})
# What an optimizer keeps in its state although no gradient changes it: nothing to average.
CONSTANTS = frozenset({'ns_coeffs', 'hyperparams'})  # Of contrib.muon and inject_hyperparams.


def label_fields(inner_state: optax.OptState, params: optax.Params) -> list[str | None]:
  """Returns the field name of every leaf of `inner_state`, in flattening order.

  The name is that of the innermost named container above the leaf, not counting the names inside
  the parameter tree itself: `mu` for the leaf `inner_state[1].inner_states['adam'].mu['w']`.
  Step counts, random keys and other integer leaves, and scalars that belong to no parameter (an
  injected learning rate), are `None`: they are never averaged. So are constants.
  """
  param_shapes = {path: jnp.shape(x) for path, x in jax.tree.leaves_with_path(params)}
  leaves = jax.tree.leaves_with_path(inner_state)
  mirrors = _mirrors(leaves, param_shapes)
  return [_field_name(path, leaf, param_shapes, mirrors) for path, leaf in leaves]


def select_fields(
  inner_state: optax.OptState, params: optax.Params, names: Collection[str] | None = None
) -> tuple[Fields, Callable[[Fields], optax.OptState]]:
  """Returns the leaves of the fields `names` (None: of all), and a function that puts others back."""
  labels = label_fields(inner_state, params)
  return select_places(
    inner_state,
    [
      i for i, label in enumerate(labels) if label is not None and (names is None or label in names)
    ],
  )


def select_others(
  inner_state: optax.OptState, params: optax.Params
) -> tuple[Fields, Callable[[Fields], optax.OptState]]:
  """Returns as `select_fields` does the leaves of no field that all workers can share.

  They are counts, flags, and numbers of the whole model. Random keys are not among them.
  """

  def is_key(leaf) -> bool:
    dtype = jnp.result_type(leaf)
    return any(jnp.issubdtype(dtype, kind) for kind in (jax.dtypes.prng_key, jnp.unsignedinteger))

  leaves, labels = jax.tree.leaves(inner_state), label_fields(inner_state, params)
  labelled = enumerate(zip(leaves, labels, strict=True))
  return select_places(
    inner_state, [i for i, (leaf, label) in labelled if label is None and not is_key(leaf)]
  )


def select_places(
  tree: Any, places: Sequence[int]
) -> tuple[Fields, Callable[[Fields], optax.OptState]]:
  """Returns the leaves at these places of the flattened tree, and a function that puts others back."""
  leaves, treedef = jax.tree.flatten(tree)
  paths = dotted_paths(tree)

  def put_back(fields: Fields) -> optax.OptState:
    replaced = dict(zip(places, fields.values(), strict=True))
    return jax.tree.unflatten(treedef, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)])

  # A plain dict would be flattened in the order of its keys.
  return OrderedDict((paths[i], leaves[i]) for i in places), put_back


def by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their dotted paths."""
  return dict(zip(dotted_paths(tree), jax.tree.leaves(tree), strict=True))


def dotted_paths(tree) -> list[str]:
  """Returns a name for each leaf, '0.mu.embed', say, and no name twice."""
  paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
  names = [jax.tree_util.keystr(path, simple=True, separator='.') for path in paths]
  # A key with a dot in it may look like two keys.
  return names if len(set(names)) == len(names) else [jax.tree_util.keystr(path) for path in paths]


def check_fields(labels: Collection[str | None], names: Collection[str]) -> None:
  """Checks that `names` (besides `params`) and the labels of a state are the same set.

  Raises:
    ValueError: a floating field has no entry in `names`, or a name matches no field. The message
      lists the fields that were found.
  """
  found = {label for label in labels if label is not None}
  named = set(names) - MODELS - CONSTANTS
  listing = ', '.join(sorted(found)) or 'none'
  if reserved := sorted(found & MODELS):
    raise ValueError(
      f'the inner state has a field named {reserved[0]!r}, which periods reserves for the parameters.'
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


def _mirrors(
  leaves: Sequence[tuple[KeyPath, Any]], param_paths: Collection[KeyPath]
) -> set[KeyPath]:
  """Returns the paths of the nodes all of whose leaves are where a parameter is in its tree.

  Such a node is a moment, as a tree like the parameters (or a part of it, under a mask).
  """
  mirrors: dict[KeyPath, bool] = {}
  for path, _ in leaves:
    for start in range(len(path) + 1):
      node = path[:start]
      mirrors[node] = mirrors.get(node, True) and path[start:] in param_paths
  return {node for node, mirror in mirrors.items() if mirror}


def _field_name(
  path: KeyPath,
  leaf: jax.Array,
  param_shapes: Mapping[KeyPath, tuple[int, ...]],
  mirrors: Collection[KeyPath],
) -> str | None:
  if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
    return None
  # The outermost one: a part of the parameters' tree may look like all of it.
  start = next((i for i in range(len(path) + 1) if path[:i] in mirrors), None)
  if start is None:
    start = _start_of_parameter(path, param_shapes)
  # The state of a parameter that is a scalar itself; any other scalar belongs to no parameter.
  if jnp.ndim(leaf) == 0 and param_shapes.get(path[start:]) != ():
    return None
  above = path[:start]
  if any(isinstance(key, GetAttrKey) and key.name in CONSTANTS for key in above):
    return None
  names = [_key_name(key) for key in above if isinstance(key, GetAttrKey | DictKey)]
  return names[-1] if names else jax.tree_util.keystr(above)


def _start_of_parameter(path: KeyPath, param_paths: Collection[KeyPath]) -> int:
  """Returns where a parameter's path begins in that of an array, its length if it does not.

  What is before it is the optimizer's, what follows it too (one array an axis, say). A place in a
  chain may look like a place in a list of parameters: the match that ends last counts, and of
  those the longest.
  """
  slices = ((i, j) for j in range(len(path), 0, -1) for i in range(j))
  return next((i for i, j in slices if path[i:j] in param_paths), len(path))


def parameter_of(path: KeyPath, param_paths: Collection[KeyPath]) -> KeyPath | None:
  """Returns the path of the parameter that an array of any state is of; None: of none."""
  start = _start_of_parameter(path, param_paths)
  ends = range(len(path), start, -1)
  return next((path[start:end] for end in ends if path[start:end] in param_paths), None)


def owners(state: Any, params: optax.Params) -> list[str | None]:
  """Returns the dotted path of the parameter that each leaf of `state` is of; None: of none."""
  paths = [path for path, _ in jax.tree.leaves_with_path(params)]
  names = dict(zip(paths, dotted_paths(params), strict=True))
  found = (parameter_of(path, names.keys()) for path, _ in jax.tree.leaves_with_path(state))
  return [None if path is None else names[path] for path in found]


def _key_name(key: GetAttrKey | DictKey) -> str:
  return key.name if isinstance(key, GetAttrKey) else str(key.key)
