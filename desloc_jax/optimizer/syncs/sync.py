"""The frame: a sync says what workers send of a quantity, how it is combined, and what it remembers.

When a quantity is averaged, the transform decides; everything else about it is a `Sync`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from desloc_jax.optimizer.averaging import AxisName, Share
from desloc_jax.optimizer.syncs.landing import Landing, OVERWRITE

Tree = Any


class Memory(NamedTuple):
  """What a sync keeps from one time to the next; trees, empty where nothing is kept."""

  own: Tree = ()  # Another on each worker.
  shared: Tree = ()  # The same on all workers, bit for bit.


# Where a Memory varies over workers, as a tree prefix for `jax.vmap`'s in_axes and out_axes.
MEMORY_AXES = Memory(own=0, shared=None)


class Context(NamedTuple):
  """What is known of the workers at a sync."""

  axis_name: AxisName
  # How much this worker counts, by weights, active mask and health; None: 1 / W.
  share: Share | None
  round: jax.Array  # int32 scalar, the same on all workers: steps done.
  # int32 scalars, likewise: steps since each quantity was last averaged.
  since: Mapping[str, jax.Array] = MappingProxyType({})


class Sync(NamedTuple):
  """How one quantity (the parameters, or a state field) crosses the worker axis.

  `init(tree)` returns the `Memory` at the start, when `tree` is the same on all workers.

  `reduce(local, reference, memory, context)` returns what the workers agree on, the same bits on
  all of them, and the new memory. `local` is a tree of this worker's arrays; `reference` is one of
  the same structure that all workers share, near which `local` is, or None. It is the only place
  where anything is sent, and runs inside a conditional. A worker that does not count (its share is
  zero) may hold anything, NaN too: it adds nothing, keeps its memory, and gets the result.

  What was agreed on lands `delay` steps after it was sent, by the rule `landing`.

  `watch(memory, share)` returns the memory after a step, also one in which nothing is averaged, and
  sends nothing; before `reduce` where both are called. None: it notes nothing.

  With `agrees` false each worker has a result of its own, and nobody a consensus: see `gossip`.
  """

  init: Callable[[Tree], Memory]
  reduce: Callable[[Tree, Tree | None, Memory, Context], tuple[Tree, Memory]]
  delay: int = 0
  landing: Landing = OVERWRITE
  watch: Callable[[Memory, Share | None], Memory] | None = None
  agrees: bool = True

  @property
  def lands_by(self) -> Landing:
    """The rule: where nothing was done since, there is nothing to keep."""
    return OVERWRITE if self.landing.needs_sent and not self.delay else self.landing


def no_memory(tree: Tree) -> Memory:
  """The `init` of a sync that keeps nothing."""
  del tree
  return Memory()


def difference(local: Tree, reference: Tree | None) -> Tree:
  """Returns what there is to send: `reference - local`, or `local` itself without a reference."""
  if reference is None:
    return local
  return jax.tree.map(lambda x, y: y - x, local, reference)


def moved(local: Tree, reference: Tree | None, step: Tree) -> Tree:
  """Returns the value that `difference` would take to `step`, in the dtypes of `local`."""
  if reference is None:
    return jax.tree.map(lambda x, s: s.astype(x.dtype), local, step)
  return jax.tree.map(lambda y, s: (y - s).astype(y.dtype), reference, step)
