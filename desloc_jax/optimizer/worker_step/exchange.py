"""Sending one quantity: what is agreed on, what its sync remembers, and what is in flight."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from desloc_jax.optimizer.averaging import match_varying, relative_distance, Share
from desloc_jax.optimizer.state import DeslocState
from desloc_jax.optimizer.syncs.sync import Context, Memory
from desloc_jax.optimizer.worker_step.flight import parcel_of, put_up, with_parcel
from desloc_jax.optimizer.worker_step.frame import Frame

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


def at_sync(
  name: str,
  due: jax.Array,
  change: Callable[[Tree, jax.Array, Memory], tuple[Tree, jax.Array, Memory]],
  keep: Callable[[Tree], Tree],
  value: Tree,
  state: DeslocState,
) -> tuple[Tree, DeslocState]:
  """Returns `change` of a value, if a quantity is due, else `keep` of it; and the state.

  `change` takes and gives the quantity's distance and memory too, as `agree` does.
  """
  value, drift, memory = jax.lax.cond(
    due,
    change,
    lambda value, *kept: (keep(value), *kept),
    value,
    state.drift[name],
    memory_of(state.memory, name),
  )
  return value, state._replace(
    drift=state.drift | {name: drift}, memory=with_memory(state.memory, name, memory)
  )


def depart(
  frame: Frame,
  name: str,
  due: jax.Array,
  local: Tree,
  reference: Tree | None,
  sent: Tree,
  state: DeslocState,
  context: Context,
) -> DeslocState:
  """Returns the state with a quantity in flight, if it is due: `local` is sent, `sent` is kept."""

  def send(value, drift, memory):
    local, sent, parcel = value
    left = frame.time_in_flight(name, context.round)
    exchange = lambda drift, memory: agree(frame, name, local, reference, drift, memory, context)
    if frame.behind:  # See `outside`; what lands at once, at the last step, is waited for.
      later = lambda drift, memory: (parcel.agreed, drift, memory)
      agreed, drift, memory = jax.lax.cond(left == 0, exchange, later, drift, memory)
    else:
      agreed, drift, memory = exchange(drift, memory)
    return put_up(parcel, agreed, sent, left), drift, memory

  value = local, sent, parcel_of(frame, state.flight, name, sent)
  parcel, state = at_sync(name, due, send, lambda value: value[-1], value, state)
  return state._replace(flight=with_parcel(frame, state.flight, name, parcel))


def watch(frame: Frame, state: DeslocState, share: Share | None) -> DeslocState:
  """Returns the state with what syncs note at each step."""
  memory = state.memory
  for name, sync in frame.all_syncs.items():
    if sync.watch:
      memory = with_memory(memory, name, sync.watch(memory_of(memory, name), share))
  return state._replace(memory=memory)


def quantities(frame: Frame, params: optax.Params, inner_state: optax.OptState) -> dict[str, Tree]:
  """Returns the arrays of each quantity that is averaged."""
  fields = frame.averaged_fields
  return {
    name: frame.select(name, inner_state if name in fields else params, params)[0]
    for name in frame.averaged
  }


def init_memory(frame: Frame, trees: dict[str, Tree]) -> Memory:
  """Returns the memories of the syncs of `trees`, by quantity, before the first step."""
  memories = {name: frame.sync_of(name).init(tree) for name, tree in trees.items()}
  return Memory(*({name: m[i] for name, m in memories.items()} for i in range(2)))


def memory_of(memory: Memory, name: str) -> Memory:
  """Returns that of one quantity."""
  return Memory(memory.own[name], memory.shared[name])


def with_memory(memory: Memory, name: str, one: Memory) -> Memory:
  """Returns all of them, that of one quantity replaced."""
  return Memory(memory.own | {name: one.own}, memory.shared | {name: one.shared})
