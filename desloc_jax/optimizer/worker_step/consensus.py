"""The sync of the parameters: the consensus moves, and local parameters become the consensus."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.averaging import match_varying, worker_count
from desloc_jax.optimizer.state import DeslocState
from desloc_jax.optimizer.worker_step.exchange import agree, at_sync, depart
from desloc_jax.optimizer.worker_step.flight import parcel_of
from desloc_jax.optimizer.worker_step.frame import Frame, SYNC_SCOPE


class Form(NamedTuple):
  """In which form the caller gets a consensus that may have moved."""

  unmoved: Callable  # consensus -> what stands for no move.
  moved: Callable  # (updates, consensus after them) -> what stands for the move.
  model: Callable  # (consensus before, either of the two) -> consensus after.
  before: Callable  # (consensus before, either of the two) -> it where other parts have moved.


# What optax's `update` returns, and what `step` does.
UPDATES = Form(
  optax.tree.zeros_like, lambda updates, _: updates, optax.apply_updates, lambda before, _: before
)
# Without the consensus before, so that the one after can be written into its place.
MODEL = Form(
  lambda consensus: consensus,
  lambda _, after: after,
  lambda _, after: after,
  lambda _, after: after,
)


def sync_params(frame: Frame, form: Form, state: DeslocState, due, moved, consensus, context):
  """Returns the consensus after what is due and what lands, in a `form`, and the state."""
  result = form.unmoved(consensus)
  for name in frame.names('params'):

    def change(state, result, name=name):
      part, _ = frame.select(name, form.before(consensus, result), consensus)
      _, put_back = frame.select(name, result, consensus)
      with jax.named_scope(SYNC_SCOPE + name):
        updates, after, state = _sync_part(
          frame, name, state, due[name], moved[name], part, context
        )
      return state, put_back(form.moved(updates, after))

    state, result = frame.in_turn(due[name] | moved[name], change, state, result)
  return result, state


def _sync_part(frame: Frame, name: str, state: DeslocState, due, moves, consensus, context):
  """Returns what moves a part of the consensus, zeros if nothing does, it after that, the state."""
  local, put_back = frame.select(name, state.params, state.params)
  if frame.sync_of(name).delay:
    local, state = _depart(frame, name, state, local, due, consensus, context)
    sent, agreed, _ = parcel_of(frame, state.flight, name, consensus)
    updates, state = _updates_of_flight(frame, name, state, agreed, moves, consensus, context)
  else:
    updates, state = _updates_now(frame, name, state, local, due, consensus, context)
    sent = ()
  # In a conditional of its own, the sum cannot be contracted with the product behind `updates` to
  # a fused multiply-add, and has the bits of the caller's apply_updates. XLA for CPUs removes an
  # `optimization_barrier` before it contracts.
  after, local = jax.lax.cond(
    moves,
    functools.partial(_apply, frame, name),
    lambda consensus, local, *_: (consensus, local),
    consensus,
    local,
    updates,
    sent,
  )
  return updates, after, state._replace(params=put_back(local))


def init_outer(frame: Frame, params: optax.Params) -> optax.OptState:
  """Returns the state of the outer optimizer, by quantity where the parameters are in fragments."""
  if frame.outer is None:
    return optax.EmptyState()
  if not frame.fragments:
    return frame.outer.init(params)
  names = frame.names('params')
  return {name: frame.outer.init(frame.select(name, params, params)[0]) for name in names}


def _outer_of(frame: Frame, state: DeslocState, name: str) -> optax.OptState:
  return state.outer[name] if frame.outer and frame.fragments else state.outer


def _with_outer(frame: Frame, state: DeslocState, name: str, outer_state) -> DeslocState:
  by_name = frame.outer and frame.fragments
  return state._replace(outer=state.outer | {name: outer_state} if by_name else outer_state)


def _updates_now(frame: Frame, name: str, state: DeslocState, local, due, consensus, context):
  """Returns the consensus' updates, zero if nothing is due, and the state."""

  def find(value, drift, memory):
    consensus, local, outer_state = value
    agreed, drift, memory = agree(frame, name, local, consensus, drift, memory, context)
    return _outer_step(frame, context, consensus, agreed, outer_state), drift, memory

  def skip(value):
    consensus, _, outer_state = value
    return optax.tree.zeros_like(consensus), outer_state

  value = consensus, local, _outer_of(frame, state, name)
  (updates, outer_state), state = at_sync(name, due, find, skip, value, state)
  return updates, _with_outer(frame, state, name, outer_state)


def _updates_of_flight(
  frame: Frame, name: str, state: DeslocState, agreed, lands, consensus, context
):
  """Returns the updates to what lands, zero if nothing does, and the state."""
  updates, outer_state = jax.lax.cond(
    lands,
    functools.partial(_outer_step, frame, context),
    lambda consensus, _, outer_state: (optax.tree.zeros_like(consensus), outer_state),
    consensus,
    agreed,
    _outer_of(frame, state, name),
  )
  return updates, _with_outer(frame, state, name, outer_state)


def _apply(frame: Frame, name: str, consensus, local, updates, sent):
  after = optax.apply_updates(consensus, updates)
  if frame.outer is None and worker_count(frame.axis_name) == 1:
    return after, local  # One worker is its own mean; consensus + updates may round off it.
  # Local parameters become the consensus itself: local + (mean - local) would round differently on
  # each worker.
  return after, frame.sync_of(name).lands_by.land(local, match_varying(after, local), sent)


def _depart(frame: Frame, name: str, state: DeslocState, local, due, consensus, context):
  """Returns where the worker goes on from, and the state with parameters in flight, if they are due."""
  goes_on = local
  if frame.sync_of(name).landing.eager:
    goes_on = jax.lax.cond(
      due,
      functools.partial(_own_part, frame, context),
      lambda local, *_: local,
      local,
      consensus,
      _outer_of(frame, state, name),
    )
  return goes_on, depart(frame, name, due, local, consensus, goes_on, state, context)


def _own_part(frame: Frame, context, local, consensus, outer_state):
  """Returns where the consensus would be if this worker alone had moved."""
  share = context.share
  part = 1 / worker_count(frame.axis_name) if share is None else share.weight / share.total
  agreed = jax.tree.map(
    lambda x, y: jnp.where(part > 0, y + (x - y) * jnp.asarray(part, y.dtype), y), local, consensus
  )
  updates, _ = _outer_step(frame, context, consensus, agreed, outer_state)
  return match_varying(optax.apply_updates(consensus, updates), local)


def _outer_step(frame: Frame, context, consensus, agreed, outer_state):
  averaging = optax.tree.sub(agreed, consensus), outer_state
  if frame.outer is None:
    return averaging
  stepped = frame.outer.update(optax.tree.sub(consensus, agreed), outer_state, consensus)
  if frame.warmup_steps:
    stepped = optax.tree.where(context.round < frame.warmup_steps, averaging, stepped)
  updates, outer_state = stepped
  # An outer optimizer may compute in a wider dtype than that of the parameters.
  return jax.tree.map(lambda u, x: u.astype(x.dtype), updates, consensus), outer_state
