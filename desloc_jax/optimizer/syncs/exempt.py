"""Another sync for some arrays of a quantity, by their path."""

from collections.abc import Callable
import re

import jax

from desloc_jax.optimizer.state_fields import by_path
from desloc_jax.optimizer.syncs.mean import mean
from desloc_jax.optimizer.syncs.sync import Memory, Sync, Tree


def exempt(sync: Sync, paths: str, by: Sync | None = None) -> Sync:
  """Leaves embeddings, norms or what else it names out of a sync, and averages them by another.

  Args:
    sync: of the other arrays.
    paths: a regular expression, 'embed|norm', say, found anywhere in the path of an array, which is
      'blocks.norm' for a parameter and '0.mu.blocks.norm' for a moment.
    by: the sync of the exempt arrays. None: the mean.

  Returns:
    A `Sync` with the memories of both.

  Raises:
    ValueError: from `init`, if `paths` names no array.
  """
  by = by or mean()
  pattern = re.compile(paths)

  def init(tree):
    (rest, exempted), _ = _split(tree, pattern)
    if not exempted:
      raise ValueError(f'exempt paths {paths!r} match none of {", ".join(rest) or "no arrays"}.')
    return _both(sync.init(rest), by.init(exempted))

  def reduce(local, reference, memory, context):
    locals_, join = _split(local, pattern)
    references = (None, None) if reference is None else _split(reference, pattern)[0]
    agreed, memories = [], []
    for i, one in enumerate((sync, by)):
      before = Memory(memory.own[i], memory.shared[i])
      result, after = one.reduce(locals_[i], references[i], before, context)
      agreed.append(result)
      memories.append(after)
    return join(*agreed), _both(*memories)

  return Sync(init, reduce)


def _both(a: Memory, b: Memory) -> Memory:
  return Memory((a.own, b.own), (a.shared, b.shared))


def _split(tree: Tree, pattern: re.Pattern) -> tuple[tuple[dict, dict], Callable]:
  """Returns the arrays by path, those that do not match and those that do; and the way back."""
  structure, named = jax.tree.structure(tree), by_path(tree)
  exempted = {name for name in named if pattern.search(name)}

  def join(rest, matching):
    both = rest | matching
    return structure.unflatten([both[name] for name in named])

  rest = {name: x for name, x in named.items() if name not in exempted}
  return (rest, {name: named[name] for name in named if name in exempted}), join
