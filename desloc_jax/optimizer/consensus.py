"""The sync of the parameters: the consensus moves, and local parameters become the consensus."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import optax

from desloc_jax.optimizer.averaging import match_varying, worker_count
from desloc_jax.optimizer.exchange import agree, memory_of, with_memory
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


def sync_params(frame: Frame, form: Form, state: DeslocState, due, consensus, context):
  """Returns the consensus after a sync that may be due, in a `form`, and the state."""
  if 'params' not in frame.averaged:
    return form.unmoved(consensus), state
  with jax.named_scope(SYNC_SCOPE + 'params'):
    updates, outer_state, drift, memory = jax.lax.cond(
      due['params'],
      functools.partial(_find_updates, frame, context),
      lambda consensus, _, *others: (optax.tree.zeros_like(consensus), *others),
      consensus,
      state.params,
      state.outer,
      state.drift['params'],
      memory_of(state.memory, 'params'),
    )
    # In a conditional of its own, the sum cannot be contracted with the product behind `updates` to
    # a fused multiply-add, and has the bits of the caller's apply_updates. XLA for CPUs removes an
    # `optimization_barrier` before it contracts.
    after, local = jax.lax.cond(
      due['params'],
      functools.partial(_apply, frame),
      lambda consensus, local, _: (consensus, local),
      consensus,
      state.params,
      updates,
    )
  return form.moved(updates, after), state._replace(
    params=local,
    outer=outer_state,
    drift=state.drift | {'params': drift},
    memory=with_memory(state.memory, 'params', memory),
  )


def _find_updates(frame: Frame, context, consensus, local, outer_state, drift, memory):
  agreed, drift, memory = agree(frame, 'params', local, consensus, drift, memory, context)
  updates, outer_state = _outer_step(frame, context, consensus, agreed, outer_state)
  return updates, outer_state, drift, memory


def _apply(frame: Frame, consensus, local, updates):
  after = optax.apply_updates(consensus, updates)
  if frame.outer is None and worker_count(frame.axis_name) == 1:
    return after, local  # One worker is its own mean; consensus + updates may round off it.
  # Local parameters become the consensus itself: local + (mean - local) would round differently on
  # each worker.
  return after, match_varying(after, local)


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
