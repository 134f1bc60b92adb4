"""Catches a gradient that was taken at the consensus, in the first steps of a loop of one's own."""

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.ddp import local_params
from desloc_jax.optimizer.state import check_state
from desloc_jax.optimizer.stepping import SteppingTransformation


def with_gradient_check(tx: SteppingTransformation, steps: int = 8) -> SteppingTransformation:
  """Checks in the first `steps` steps that gradients are those at a worker's own parameters.

  `update` and `step` then need `grad_fn`, params -> gradient on the batch of the step. It is computed
  at the worker's own parameters and at the consensus: three gradients a step, so this is for a loop's
  first try. A gradient that is nearer to that at the consensus ends the program, at the second step
  already: `ValueError: the gradient of step 1 was taken at the consensus`.

  Args:
    tx: of `desloc` or `ddp`.
    steps: how many are checked.
  """

  def checked(call):
    def run(grads, state, params, *, grad_fn=None, **extra_args):
      check_state(state)
      if grad_fn is None:
        raise ValueError('a gradient check needs grad_fn, params -> gradient on the same batch.')

      def look(grads, local, consensus):
        far_from = lambda place: optax.tree.norm(optax.tree.sub(grads, grad_fn(place)))
        jax.debug.callback(_tell, state.step, far_from(local), far_from(consensus))

      local = local_params(state, params)
      jax.lax.cond(state.step < steps, look, lambda *_: None, grads, local, params)
      return call(grads, state, params, **extra_args)

    return run

  return SteppingTransformation(tx.init, checked(tx.update), checked(tx.step))


def _tell(step, from_local, from_consensus):
  if jnp.any(from_consensus < from_local):
    raise ValueError(
      f"the gradient of step {int(jnp.max(step))} was taken at the consensus; take it at a worker's own "
      'parameters, desloc_jax.local_params(state, params).'
    )
