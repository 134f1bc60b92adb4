"""One step of a worker: its local step, and the syncs that are due."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.averaging import all_axes, Share, worker_count, worker_share
from desloc_jax.optimizer.state import DeslocState
from desloc_jax.optimizer.syncs.sync import Context
from desloc_jax.optimizer.worker_step import checkup, triggers
from desloc_jax.optimizer.worker_step.consensus import Form, sync_params
from desloc_jax.optimizer.worker_step.exchange import watch
from desloc_jax.optimizer.worker_step.fields import restart_fields, sync_fields
from desloc_jax.optimizer.worker_step.flight import count_down
from desloc_jax.optimizer.worker_step.frame import Frame, HEALTH, RESTARTS
from desloc_jax.optimizer.worker_step.published import sync_apart


def advance(
  frame: Frame,
  form: Form,
  grads,
  state: DeslocState,
  params=None,
  *,
  weights=None,
  active=None,
  **extra_args,
):
  """Returns the consensus after a step, in a `form`, and the state: see `desloc`."""
  if params is None:
    raise ValueError(
      'desloc.update needs params, the consensus model: update(grads, state, params).'
    )
  frame = dataclasses.replace(frame, axis_name=all_axes(frame.axis_name))
  worker_count(frame.axis_name)  # Raises outside the axis.
  share = worker_share(frame.axis_name, weights, active)
  value = extra_args.get('value')
  state = state._replace(counters=jax.tree.map(abs, state.counters))
  if frame.health:
    state = checkup.look_back(frame, state, params)
  if frame.timing == 'pre':
    result, state, ballot = sync(frame, form, state, params, share, value)
    stepped = _local_step(frame, grads, state, **extra_args)
    state = stepped if ballot is None else checkup.skip_step(frame, state, stepped, ballot)
    if frame.health:
      state = checkup.look_around(frame, form, state, params, result)
  else:
    state = _local_step(frame, grads, state, **extra_args)
    result, state, _ = sync(frame, form, state, params, share, value)
  return result, state._replace(step=state.step + 1)


def _local_step(frame: Frame, grads, state: DeslocState, **extra_args) -> DeslocState:
  updates, inner_state = frame.inner.update(grads, state.inner, state.params, **extra_args)
  return state._replace(
    counters={name: counter + 1 for name, counter in state.counters.items()},
    params=optax.apply_updates(state.params, updates),
    inner=inner_state,
  )


def sync(frame: Frame, form: Form, state: DeslocState, consensus, share: Share | None, value):
  """Returns the consensus in a `form`, the state and the ballot (None without a health check).

  All syncs are in one conditional, which a local step passes by: it copies nothing.
  """
  if not frame.averaged:
    return form.unmoved(consensus), state, None
  done = state.step + (frame.timing == 'post')
  periods = {name: quantity.period for name, quantity in frame.averaged.items()}
  due = triggers.due_now(
    periods, state.counters, state.step, frame.coin_key, frame.warmup_steps, done
  )
  flight, lands = count_down(state.flight) if frame.is_delayed else (state.flight, {})
  state = state._replace(flight=flight)
  state = watch(frame, state, share)
  if frame.health:
    state = checkup.attend(state, share)

  def pass_by(state, consensus):
    ballot = checkup.no_vote(frame, state) if frame.health else None
    return form.unmoved(consensus), state, ballot

  return jax.lax.cond(
    _any(due | {f'landing {name}': now for name, now in lands.items()}),
    functools.partial(_sync, frame, form, due, lands, share, value),
    pass_by,
    state,
    consensus,
  )


def _any(events) -> jax.Array:
  return functools.reduce(jnp.logical_or, events.values())


def _sync(frame: Frame, form: Form, due, lands, share, value, state: DeslocState, consensus):
  ballot = None
  if lands:
    due = frame.sent(due, lands, state.flight.left, state.step)
  if frame.health:
    due = due | {HEALTH: _any(due)}
    ballot, state = checkup.take_vote(frame, state, due, consensus, share, value)
    share = ballot.share
    due = due | {RESTARTS: frame.any_params(due) & ballot.any_restarts}
  if share is not None:
    # The vote was taken, and sent, also where nobody counts.
    due = {name: now & (name == HEALTH or share.total > 0) for name, now in due.items()}
  context = Context(frame.axis_name, share, state.step, state.counters)
  moved = frame.moved(due, lands, state.step)
  state = sync_fields(frame, state, due, moved, consensus, context)
  if frame.health:
    state = restart_fields(frame, state, due[RESTARTS], consensus, ballot)
  change = sync_apart if frame.publishes else sync_params
  result, state = change(frame, form, state, due, moved, consensus, context)
  state = state._replace(counters=_count_anew(state.counters, due))
  if frame.health and frame.timing == 'post':
    state = checkup.look_around(frame, form, state, consensus, result)
  return result, state, ballot


def _count_anew(counters, due):
  # A counter is zero here in the first update only, before its step ('pre'): -2 tells an average
  # from none after that step, see `synced`.
  zero = {name: jnp.where(count == 0, -2, 0) for name, count in counters.items()}
  return {name: jnp.where(due[name], zero[name], count) for name, count in counters.items()}
