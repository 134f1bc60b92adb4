"""The exchange of one quantity outside of the step that lands it; see `flight`.

`desloc(..., behind=True)` says what is due and lands what is in flight, and sends nothing. Another
program takes `parts_of` its state after that step, does `exchange`, and `with_outcome` puts the
result where the landing finds it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.averaging import worker_count, worker_share
from desloc_jax.optimizer.state import DeslocState
from desloc_jax.optimizer.syncs.sync import Context, Memory, MEMORY_AXES
from desloc_jax.optimizer.worker_step.exchange import agree, memory_of, with_memory
from desloc_jax.optimizer.worker_step.frame import Frame, SYNC_SCOPE

Tree = Any


class Parts(NamedTuple):
  """What an exchange takes of a state."""

  local: Tree  # The worker's own value, as it was sent.
  reference: Tree  # Of the parameters the consensus, else ().
  memory: Memory
  drift: jax.Array
  step: jax.Array  # int32 scalar: steps done.


class Outcome(NamedTuple):
  """What an exchange gives."""

  agreed: Tree  # The same on all workers.
  memory: Memory
  drift: jax.Array


# Where they vary over workers, as tree prefixes.
PARTS_AXES = Parts(local=0, reference=None, memory=MEMORY_AXES, drift=0, step=None)
OUTCOME_AXES = Outcome(agreed=None, memory=MEMORY_AXES, drift=0)


def parts_of(name: str, state: DeslocState, consensus: optax.Params) -> Parts:
  """Returns what the exchange takes of a quantity that was just sent, of one worker or of all."""
  reference = consensus if name == 'params' else ()
  sent, memory = state.flight.sent[name], memory_of(state.memory, name)
  return Parts(sent, reference, memory, state.drift[name], state.step)


def exchange(frame: Frame, name: str, parts: Parts, active=None, *, weights=None) -> Outcome:
  """Returns what the workers agree on; a worker whose value is not finite does not count.

  It sends what the sync does, and four bytes for each worker.

  Args:
    frame: of `desloc`.
    name: of the quantity.
    parts: of this worker, inside the worker axis.
    active: of `update`.
    weights: of `update`.
  """
  with jax.named_scope(SYNC_SCOPE + name):
    finite = _finite_workers(frame, parts.local)

    def among(active):
      share = worker_share(frame.axis_name, weights, active)
      context = Context(frame.axis_name, share, parts.step - 1)
      reference = parts.reference if name == 'params' else None
      agreed, drift, memory = agree(
        frame, name, parts.local, reference, parts.drift, parts.memory, context
      )
      return Outcome(agreed, memory, drift)

    return jax.lax.cond(
      finite.all(),
      lambda: among(active),
      lambda: among(finite if active is None else finite & active),
    )


def with_outcome(name: str, state: DeslocState, outcome: Outcome) -> DeslocState:
  """Returns the state with what was agreed on in flight."""
  return state._replace(
    flight=state.flight._replace(agreed=state.flight.agreed | {name: outcome.agreed}),
    memory=with_memory(state.memory, name, outcome.memory),
    drift=state.drift | {name: outcome.drift},
  )


def _finite_workers(frame: Frame, local: Tree) -> jax.Array:
  """Returns boolean [workers]: is all that they send finite?"""
  finite = jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(local)]).all()
  own = jnp.arange(worker_count(frame.axis_name)) == jax.lax.axis_index(frame.axis_name)
  return jax.lax.psum((own & finite).astype(jnp.int32), frame.axis_name) > 0
