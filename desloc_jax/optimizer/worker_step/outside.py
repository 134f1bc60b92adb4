"""The exchange of one quantity outside of the step that lands it; see `flight`.

`desloc(..., behind=True)` says what is due and lands what is in flight, and sends nothing. Another
program takes `parts_of` its state after that step, does `exchange`, and `with_outcome` puts the
result where the landing finds it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer import state_fields
from desloc_jax.optimizer.averaging import worker_count, worker_share
from desloc_jax.optimizer.state import DeslocState
from desloc_jax.optimizer.syncs.sync import Context, Memory, MEMORY_AXES
from desloc_jax.optimizer.worker_step.exchange import agree, memory_of, with_memory
from desloc_jax.optimizer.worker_step.flight import parcel_of, with_agreed
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


@dataclasses.dataclass(frozen=True)
class Outside:
  """The exchanges that the steps of a `desloc(..., behind=True)` leave to others.

  Attributes:
    frame: of `desloc`.
    weights: of `update`.
  """

  frame: Frame
  weights: jax.Array | None = None

  def parts_of(self, name: str, state: DeslocState, consensus: optax.Params) -> Parts:
    """Returns what the exchange takes of a quantity that was just sent.

    Of one worker, inside the worker axis or outside; of a whole quantity also that of all workers.
    """
    frame, is_model = self.frame, self._is_model(name)
    reference, like = consensus if is_model else (), ()
    if frame.averaged[name].fragment is not None:
      like, _ = frame.select(name, consensus if is_model else state.inner, consensus)
      reference = like if is_model else ()
    sent = parcel_of(frame, state.flight, name, like).sent
    return Parts(sent, reference, memory_of(state.memory, name), state.drift[name], state.step)

  def exchange(self, name: str, parts: Parts, active=None) -> Outcome:
    """Returns what the workers agree on; a worker whose value is not finite does not count.

    It sends what the sync does, and four bytes for each worker.

    Args:
      name: of the quantity.
      parts: of this worker, inside the worker axis.
      active: of `update`.
    """
    frame = self.frame
    with jax.named_scope(SYNC_SCOPE + name):
      finite = _finite_workers(frame, parts.local)

      def among(active):
        share = worker_share(frame.axis_name, self.weights, active)
        context = Context(frame.axis_name, share, parts.step - 1)
        reference = parts.reference if self._is_model(name) else None
        agreed, drift, memory = agree(
          frame, name, parts.local, reference, parts.drift, parts.memory, context
        )
        return Outcome(agreed, memory, drift)

      return jax.lax.cond(
        finite.all(),
        lambda: among(active),
        lambda: among(finite if active is None else finite & active),
      )

  def with_outcome(self, name: str, state: DeslocState, outcome: Outcome) -> DeslocState:
    """Returns the state, of one worker or of all, with what was agreed on in flight."""
    return state._replace(
      flight=with_agreed(self.frame, state.flight, name, outcome.agreed),
      memory=with_memory(state.memory, name, outcome.memory),
      drift=state.drift | {name: outcome.drift},
    )

  def _is_model(self, name: str) -> bool:
    return self.frame.averaged[name].field in state_fields.MODELS


def _finite_workers(frame: Frame, local: Tree) -> jax.Array:
  """Returns boolean [workers]: is all that they send finite?"""
  finite = jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(local)]).all()
  own = jnp.arange(worker_count(frame.axis_name)) == jax.lax.axis_index(frame.axis_name)
  return jax.lax.psum((own & finite).astype(jnp.int32), frame.axis_name) > 0
