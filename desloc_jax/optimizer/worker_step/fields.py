"""The syncs of the inner optimizer's state: its fields are averaged, guarded, reset, taken over."""

import functools

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer import state_fields
from desloc_jax.optimizer.averaging import from_one, match_varying, worker_mean
from desloc_jax.optimizer.state import DeslocState
from desloc_jax.optimizer.worker_step import moment_guard
from desloc_jax.optimizer.worker_step.exchange import agree, at_sync, depart
from desloc_jax.optimizer.worker_step.flight import parcel_of, with_parcel
from desloc_jax.optimizer.worker_step.frame import Frame, RESTARTS, SYNC_SCOPE


def sync_fields(frame: Frame, state: DeslocState, due, moved, consensus, context) -> DeslocState:
  """Returns the state with the fields averaged that are due, and those taken over that land."""
  for name in frame.averaged_fields:
    happens = due[name] | moved[name]
    change = functools.partial(_sync_field, frame, name, due[name], moved[name], consensus, context)
    (state,) = frame.in_turn(happens, change, state)
  inner_state = state.inner
  if frame.guard:
    inner_state = _guarded(frame, inner_state, moved, consensus)
  if frame.reset and frame.names('params'):
    fields, put_back = state_fields.select_fields(inner_state, consensus, frame.reset)
    zeroed = frame.any_params(moved) & (state.step >= frame.warmup_steps)
    inner_state = put_back(jax.lax.cond(zeroed, _zero, lambda fields: fields, fields))
  return state._replace(inner=inner_state)


def _sync_field(frame: Frame, name: str, due, moves, consensus, context, state: DeslocState):
  fields, put_back = frame.select(name, state.inner, consensus)
  with jax.named_scope(SYNC_SCOPE + name):
    if frame.sync_of(name).delay:
      state = depart(frame, name, due, fields, None, fields, state, context)
      fields = _take_over(frame, name, fields, moves, state)
    else:
      fields, state = _average_now(frame, name, fields, due, state, context)
  return (state._replace(inner=put_back(fields)),)


def _guarded(frame: Frame, inner_state, moved, consensus):
  """Returns the state with second moments raised where one moment of a part has moved alone."""
  by_part: dict[str | None, dict[str, jax.Array]] = {}
  for name in frame.averaged_fields:
    field, _, part = frame.averaged[name]
    by_part.setdefault(part, {})[field] = moved[name]
  own_periods = any(fragment.periods for fragment in frame.fragments.values())
  independent = frame.coin_key is not None or frame.is_delayed or own_periods
  bounds = moment_guard.find_bounds(frame.inner, inner_state, consensus, frame.periods, independent)
  kept = {frame.averaged[name].field for name in frame.kept}
  return moment_guard.hold(inner_state, bounds, list(by_part.values()), kept)


def _average_now(frame: Frame, name: str, fields, due, state: DeslocState, context):
  def average(local, drift, memory):
    agreed, drift, memory = agree(frame, name, local, None, drift, memory, context)
    return frame.sync_of(name).lands_by.land(local, match_varying(agreed, local), ()), drift, memory

  return at_sync(name, due, average, lambda fields: fields, fields, state)


def _take_over(frame: Frame, name: str, fields, moves, state: DeslocState):
  def land(local, agreed, sent):
    return frame.sync_of(name).landing.land(local, match_varying(agreed, local), sent)

  sent, agreed, _ = parcel_of(frame, state.flight, name, fields)
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
  if frame.is_delayed or frame.fragments:
    state = _restart_flight(frame, state, due, consensus, ballot)
  return state


def _restart_flight(frame: Frame, state: DeslocState, due, consensus, ballot) -> DeslocState:
  """Returns the state of a worker that restarts as if it had sent what it restarts with."""

  def restart(params, flight):
    for name in frame.averaged:
      if name in frame.kept:
        is_field = name in frame.averaged_fields
        value, _ = frame.select(name, state.inner if is_field else consensus, consensus)
        parcel = parcel_of(frame, flight, name, value)
        anew = functools.partial(jnp.where, ballot.restarts & (parcel.left > 0))
        sent = jax.tree.map(anew, value, parcel.sent)
        flight = with_parcel(frame, flight, name, parcel._replace(sent=sent))
    return jax.tree.map(functools.partial(jnp.where, ballot.restarts), consensus, params), flight

  params, flight = jax.lax.cond(due, restart, _keep, state.params, state.flight)
  # Else they become the consensus in a moment.
  if frame.fragments or frame.sync_of('params').delay:
    state = state._replace(params=params)
  return state._replace(flight=flight)


def _zero(local):
  return match_varying(optax.tree.zeros_like(local), local)


def _keep(*operands):
  return operands
