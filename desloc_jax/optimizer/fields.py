"""The syncs of the inner optimizer's state: its fields are averaged, guarded, reset, taken over."""

import functools

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer import moment_guard, state_fields
from desloc_jax.optimizer.averaging import from_one, match_varying, worker_mean
from desloc_jax.optimizer.exchange import agree, depart, memory_of, with_memory
from desloc_jax.optimizer.flight import parcel_of
from desloc_jax.optimizer.frame import Frame, RESTARTS, SYNC_SCOPE
from desloc_jax.optimizer.state import DeslocState


def sync_fields(frame: Frame, state: DeslocState, due, moved, consensus, context) -> DeslocState:
  """Returns the state with the fields averaged that are due, and those taken over that land."""
  for name in frame.averaged_fields:
    fields, put_back = state_fields.select_fields(state.inner, consensus, {name})
    with jax.named_scope(SYNC_SCOPE + name):
      if frame.sync_of(name).delay:
        state = depart(frame, name, due[name], fields, None, fields, state, context)
        fields = _take_over(frame, name, fields, moved[name], state)
      else:
        fields, state = _average_now(frame, name, fields, due[name], state, context)
    state = state._replace(inner=put_back(fields))
  inner_state = state.inner
  if frame.guard:
    bounds = _bounds(frame, inner_state, consensus)
    inner_state = moment_guard.hold(inner_state, bounds, moved, frame.kept)
  if frame.reset and 'params' in moved:
    fields, put_back = state_fields.select_fields(inner_state, consensus, frame.reset)
    zeroed = moved['params'] & (state.step >= frame.warmup_steps)
    inner_state = put_back(jax.lax.cond(zeroed, _zero, lambda fields: fields, fields))
  return state._replace(inner=inner_state)


def _average_now(frame: Frame, name: str, fields, due, state: DeslocState, context):
  def average(local, drift, memory):
    agreed, drift, memory = agree(frame, name, local, None, drift, memory, context)
    return frame.sync_of(name).lands_by.land(local, match_varying(agreed, local), ()), drift, memory

  fields, drift, memory = jax.lax.cond(
    due, average, _keep, fields, state.drift[name], memory_of(state.memory, name)
  )
  return fields, state._replace(
    drift=state.drift | {name: drift}, memory=with_memory(state.memory, name, memory)
  )


def _take_over(frame: Frame, name: str, fields, moves, state: DeslocState):
  def land(local, agreed, sent):
    return frame.sync_of(name).landing.land(local, match_varying(agreed, local), sent)

  sent, agreed, _ = parcel_of(state.flight, name)
  return jax.lax.cond(moves, land, lambda local, *_: local, fields, agreed, sent)


def restart_fields(frame: Frame, state: DeslocState, due, consensus, ballot) -> DeslocState:
  """Returns the state of a worker that restarts with the means of fields, and the rest of one's."""

  def take_over(fields, others):
    means = worker_mean(fields, frame.axis_name, ballot.share)
    donated = from_one(others, frame.axis_name, ballot.donates)
    restart = functools.partial(jnp.where, ballot.restarts)
    return jax.tree.map(restart, (means, donated), (fields, others))

  fields, put_back = state_fields.select_fields(state.inner, consensus)
  others, _ = state_fields.select_others(state.inner, consensus)
  with jax.named_scope(SYNC_SCOPE + RESTARTS):
    fields, others = jax.lax.cond(due, take_over, _keep, fields, others)
  inner_state = put_back(fields)
  _, put_back = state_fields.select_others(inner_state, consensus)
  state = state._replace(inner=put_back(others))
  return _restart_flight(frame, state, due, consensus, ballot) if frame.is_delayed else state


def _restart_flight(frame: Frame, state: DeslocState, due, consensus, ballot) -> DeslocState:
  """Returns the state of a worker that restarts as if it had sent what it restarts with."""
  kept = [name for name in frame.averaged_fields if name in frame.kept]
  values = {name: state_fields.select_fields(state.inner, consensus, {name})[0] for name in kept}
  own = {name: state.flight.sent[name] for name in kept}
  restart = functools.partial(jnp.where, ballot.restarts)
  params, own = jax.lax.cond(
    due,
    lambda *own: jax.tree.map(restart, (consensus, values), own),
    _keep,
    state.params,
    own,
  )
  if frame.sync_of('params').delay:  # Else they become the consensus in a moment.
    state = state._replace(params=params)
  return state._replace(flight=state.flight._replace(sent=state.flight.sent | own))


def _bounds(frame: Frame, inner_state, consensus) -> moment_guard.Bounds:
  independent = frame.coin_key is not None or frame.is_delayed
  return moment_guard.find_bounds(frame.inner, inner_state, consensus, frame.periods, independent)


def _zero(local):
  return match_varying(optax.tree.zeros_like(local), local)


def _keep(*operands):
  return operands
