"""The syncs of the inner optimizer's state: its fields are averaged, guarded, reset, taken over."""

import functools

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer import moment_guard, state_fields
from desloc_jax.optimizer.averaging import from_one, match_varying, worker_mean
from desloc_jax.optimizer.exchange import agree, memory_of, with_memory
from desloc_jax.optimizer.frame import Frame, RESTARTS, SYNC_SCOPE
from desloc_jax.optimizer.state import DeslocState


def sync_fields(frame: Frame, state: DeslocState, due, consensus, context) -> DeslocState:
  """Returns the state with the fields averaged that are due."""
  inner_state, drift, memory = state.inner, dict(state.drift), state.memory
  for name in frame.averaged_fields:
    fields, put_back = state_fields.select_fields(inner_state, consensus, {name})
    with jax.named_scope(SYNC_SCOPE + name):
      fields, drift[name], kept = jax.lax.cond(
        due[name],
        functools.partial(_average, frame, name, context),
        _keep,
        fields,
        drift[name],
        memory_of(memory, name),
      )
    memory = with_memory(memory, name, kept)
    inner_state = put_back(fields)
  if frame.guard:
    inner_state = moment_guard.hold(inner_state, _bounds(frame, inner_state, consensus), due)
  if frame.reset and 'params' in due:
    fields, put_back = state_fields.select_fields(inner_state, consensus, frame.reset)
    zeroed = due['params'] & (state.step >= frame.warmup_steps)
    inner_state = put_back(jax.lax.cond(zeroed, _zero, lambda fields: fields, fields))
  return state._replace(inner=inner_state, drift=drift, memory=memory)


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
  return state._replace(inner=put_back(others))


def _average(frame: Frame, name: str, context, local, drift, memory):
  agreed, drift, memory = agree(frame, name, local, None, drift, memory, context)
  return match_varying(agreed, local), drift, memory


def _bounds(frame: Frame, inner_state, consensus) -> moment_guard.Bounds:
  independent = frame.coin_key is not None
  return moment_guard.find_bounds(frame.inner, inner_state, consensus, frame.periods, independent)


def _zero(local):
  return match_varying(optax.tree.zeros_like(local), local)


def _keep(*operands):
  return operands
