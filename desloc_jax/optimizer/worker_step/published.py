"""The sync of parameters on which workers do not agree, and the consensus that is published apart."""

import jax
import optax

from desloc_jax.optimizer.averaging import match_varying
from desloc_jax.optimizer.state import DeslocState
from desloc_jax.optimizer.worker_step.consensus import Form
from desloc_jax.optimizer.worker_step.exchange import agree, at_sync
from desloc_jax.optimizer.worker_step.frame import CONSENSUS, Frame, SYNC_SCOPE


def sync_apart(frame: Frame, form: Form, state: DeslocState, due, moved, consensus, context):
  """Returns the consensus after what is due, in a `form`, and the state.

  Local parameters change by their own sync only; the consensus becomes their mean.
  """

  del moved  # Nothing of it is delayed.

  def meet(local, drift, memory):
    agreed, *kept = agree(frame, 'params', local, None, drift, memory, context)
    return match_varying(agreed, local), *kept

  def publish(consensus, drift, memory):
    agreed, *kept = agree(frame, CONSENSUS, state.params, consensus, drift, memory, context)
    return optax.tree.sub(agreed, consensus), *kept

  with jax.named_scope(SYNC_SCOPE + 'params'):
    local, state = at_sync('params', due['params'], meet, lambda x: x, state.params, state)
  state = state._replace(params=local)
  with jax.named_scope(SYNC_SCOPE + CONSENSUS):
    updates, state = at_sync(
      CONSENSUS, due[CONSENSUS], publish, optax.tree.zeros_like, consensus, state
    )
  # In a conditional of its own: see `sync_params`.
  after = jax.lax.cond(due[CONSENSUS], optax.apply_updates, lambda x, _: x, consensus, updates)
  return form.moved(updates, after), state
