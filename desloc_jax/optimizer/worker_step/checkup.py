"""When the health check of `desloc` looks at this worker, and what it does about it."""

import functools

import jax
import jax.numpy as jnp

from desloc_jax.optimizer import health as health_lib
from desloc_jax.optimizer.state import DeslocState
from desloc_jax.optimizer.worker_step.consensus import Form
from desloc_jax.optimizer.worker_step.frame import Frame, HEALTH, SYNC_SCOPE


def just_synced(frame: Frame, state: DeslocState) -> jax.Array:
  """Whether the last step moved parameters, if it could."""
  landed = {n: frame.sync_of(n).delay + (frame.timing == 'pre') for n in frame.names('params')}
  return frame.any_params({n: abs(state.counters[n]) == count for n, count in landed.items()})


def _since_sent(frame: Frame, state: DeslocState) -> jax.Array:
  """Returns the steps since parameters were last sent."""
  counts = [state.counters[name] for name in frame.names('params')]
  return functools.reduce(jnp.minimum, counts)


def look_back(frame: Frame, state: DeslocState, consensus) -> DeslocState:
  """At the start of a step: is the worker where the last sync had left it?"""
  moved = just_synced(frame, state)
  record, params = health_lib.look_back(state.health, consensus, state.params, moved)
  return state._replace(health=record, params=params)


def take_vote(frame: Frame, state: DeslocState, due, consensus, share, value):
  """Returns the ballot before a sync, and the state with its record."""
  # Before the local step: one that restarted at the step before has had none since.
  has_stepped = _since_sent(frame, state) > (frame.timing == 'pre')
  with jax.named_scope(SYNC_SCOPE + HEALTH):
    ballot = jax.lax.cond(
      due[HEALTH],
      lambda *worker: health_lib.vote(
        frame.health, *worker, value, has_stepped, share, frame.axis_name
      ),
      lambda record, *_: health_lib.no_vote(record, frame.axis_name),
      *(state.health, consensus, state.params, state.inner),
    )
  active = True if share is None else share.weight > 0
  record = health_lib.record(frame.health, state.health, ballot, frame.any_params(due), active)
  return ballot, state._replace(health=record)


def no_vote(frame: Frame, state: DeslocState) -> health_lib.Vote:
  """Returns a ballot of the same type where nothing is due."""
  return health_lib.no_vote(state.health, frame.axis_name)


def attend(state: DeslocState, share) -> DeslocState:
  """Returns the state of a worker that was not there at a step, if it counts for nothing."""
  if share is None:
    return state
  joined = state.health.joined & (share.weight > 0)
  return state._replace(health=state.health._replace(joined=joined))


def skip_step(frame: Frame, state: DeslocState, stepped: DeslocState, ballot) -> DeslocState:
  """Returns `stepped`, but for a worker that restarts: its gradient was taken elsewhere."""
  before, after = (state.params, state.inner), (stepped.params, stepped.inner)
  params, inner = health_lib.skip_step(ballot, _since_sent(frame, state) <= 0, before, after)
  return stepped._replace(params=params, inner=inner)


def look_around(frame: Frame, form: Form, state: DeslocState, before, result) -> DeslocState:
  """At the end of a step: how far is the worker from the consensus, if that has just moved?

  `result` is the consensus in a `form`, `before` the one before the step.
  """
  moved = just_synced(frame, state)
  record = health_lib.look_around(state.health, form.model(before, result), state.params, moved)
  return state._replace(health=record)
