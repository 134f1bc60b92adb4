"""The sync of the parameters: the consensus moves, and local parameters become the consensus."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.averaging import match_varying, worker_count
from desloc_jax.optimizer.exchange import agree, depart, memory_of, with_memory
from desloc_jax.optimizer.frame import Frame, SYNC_SCOPE
from desloc_jax.optimizer.state import DeslocState


class Form(NamedTuple):
  """In which form the caller gets a consensus that may have moved."""

  unmoved: Callable  # consensus -> what stands for no move.
  moved: Callable  # (updates, consensus after them) -> what stands for the move.
  model: Callable  # (consensus before, either of the two) -> consensus after.


# What optax's `update` returns, and what `step` does.
UPDATES = Form(optax.tree.zeros_like, lambda updates, _: updates, optax.apply_updates)
MODEL = Form(lambda consensus: consensus, lambda _, after: after, lambda _, after: after)


def sync_params(frame: Frame, form: Form, state: DeslocState, due, moved, consensus, context):
  """Returns the consensus after what is due and what lands, in a `form`, and the state."""
  if 'params' not in frame.averaged:
    return form.unmoved(consensus), state
  with jax.named_scope(SYNC_SCOPE + 'params'):
    if frame.sync_of('params').delay:
      state = _depart(frame, state, due['params'], consensus, context)
      updates, state = _updates_of_flight(frame, state, moved['params'], consensus, context)
      sent = state.flight.sent['params']
    else:
      updates, state = _updates_now(frame, state, due['params'], consensus, context)
      sent = ()
    # In a conditional of its own, the sum cannot be contracted with the product behind `updates` to
    # a fused multiply-add, and has the bits of the caller's apply_updates. XLA for CPUs removes an
    # `optimization_barrier` before it contracts.
    after, local = jax.lax.cond(
      moved['params'],
      functools.partial(_apply, frame),
      lambda consensus, local, *_: (consensus, local),
      consensus,
      state.params,
      updates,
      sent,
    )
  return form.moved(updates, after), state._replace(params=local)


def _updates_now(frame: Frame, state: DeslocState, due, consensus, context):
  """Returns the consensus' updates, zero if nothing is due, and the state."""

  def find(consensus, local, drift, memory, outer_state):
    agreed, drift, memory = agree(frame, 'params', local, consensus, drift, memory, context)
    return drift, memory, *_outer_step(frame, context, consensus, agreed, outer_state)

  def skip(consensus, local, drift, memory, outer_state):
    return drift, memory, optax.tree.zeros_like(consensus), outer_state

  drift, memory, updates, outer_state = jax.lax.cond(
    due,
    find,
    skip,
    consensus,
    state.params,
    state.drift['params'],
    memory_of(state.memory, 'params'),
    state.outer,
  )
  return updates, state._replace(
    outer=outer_state,
    drift=state.drift | {'params': drift},
    memory=with_memory(state.memory, 'params', memory),
  )


def _updates_of_flight(frame: Frame, state: DeslocState, lands, consensus, context):
  """Returns the updates to what lands, zero if nothing does, and the state."""
  updates, outer_state = jax.lax.cond(
    lands,
    functools.partial(_outer_step, frame, context),
    lambda consensus, _, outer_state: (optax.tree.zeros_like(consensus), outer_state),
    consensus,
    state.flight.agreed['params'],
    state.outer,
  )
  return updates, state._replace(outer=outer_state)


def _apply(frame: Frame, consensus, local, updates, sent):
  after = optax.apply_updates(consensus, updates)
  if frame.outer is None and worker_count(frame.axis_name) == 1:
    return after, local  # One worker is its own mean; consensus + updates may round off it.
  # Local parameters become the consensus itself: local + (mean - local) would round differently on
  # each worker.
  return after, frame.sync_of('params').lands_by.land(local, match_varying(after, local), sent)


def _depart(frame: Frame, state: DeslocState, due, consensus, context) -> DeslocState:
  """Returns the state with the parameters in flight, if they are due."""
  local = goes_on = state.params
  if frame.sync_of('params').landing.eager:
    goes_on = jax.lax.cond(
      due,
      functools.partial(_own_part, frame, context),
      lambda local, *_: local,
      local,
      consensus,
      state.outer,
    )
  state = depart(frame, 'params', due, local, consensus, goes_on, state, context)
  return state._replace(params=goes_on)


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
