"""Agreeing on one quantity, and the memory of its sync."""

from typing import Any

import jax
import optax

from desloc_jax.optimizer import state_fields
from desloc_jax.optimizer.averaging import match_varying, relative_distance
from desloc_jax.optimizer.frame import Frame
from desloc_jax.optimizer.syncs.sync import Context, Memory

Tree = Any


def agree(
  frame: Frame,
  name: str,
  local: Tree,
  reference: Tree | None,
  drift: jax.Array,
  memory: Memory,
  context: Context,
) -> tuple[Tree, jax.Array, Memory]:
  """Returns what the workers agree on for a quantity, this worker's distance from it, the memory.

  `drift` and `memory` are those before; they tell the types that the branches of a conditional
  share.
  """
  agreed, after = frame.sync_of(name).reduce(local, reference, memory, context)
  after = after._replace(own=match_varying(after.own, memory.own))
  return agreed, match_varying(relative_distance(local, agreed), drift), after


def init_memory(frame: Frame, params: optax.Params, inner_state: optax.OptState) -> Memory:
  """Returns the memories of all syncs, by quantity, before the first step."""
  trees = {'params': params}
  for name in frame.averaged_fields:
    trees[name], _ = state_fields.select_fields(inner_state, params, {name})
  memories = {name: frame.sync_of(name).init(trees[name]) for name in frame.averaged}
  return Memory(*({name: m[i] for name, m in memories.items()} for i in range(2)))


def memory_of(memory: Memory, name: str) -> Memory:
  """Returns that of one quantity."""
  return Memory(memory.own[name], memory.shared[name])


def with_memory(memory: Memory, name: str, one: Memory) -> Memory:
  """Returns all of them, that of one quantity replaced."""
  return Memory(memory.own | {name: one.own}, memory.shared | {name: one.shared})
