"""Runs a transformation on several workers, without a trainer."""

import jax
import jax.numpy as jnp
import optax

from desloc_jax import WORKER_AXES
from desloc_jax.optimizer.ddp import local_params


def init(tx, params, workers):
  return jax.vmap(lambda: tx.init(params), axis_size=workers, out_axes=WORKER_AXES)()


def make_step(tx, gradient, workers):
  """Returns (t, state, params) -> (state, params); gradient is (t, worker, x) -> grads."""

  def of_worker(t, worker, state, params):
    grads = gradient(t, worker, local_params(state, params))
    updates, state = tx.update(grads, state, params)
    return state, optax.apply_updates(params, updates)

  of_all = jax.vmap(
    of_worker,
    in_axes=(None, 0, WORKER_AXES, None),
    out_axes=(WORKER_AXES, None),
    axis_name='workers',
  )
  return lambda t, state, params: of_all(t, jnp.arange(workers), state, params)


def run(tx, params, gradient, workers, steps, compiler=jax.jit):
  """Yields (state, consensus) after each of `steps` steps."""
  state = init(tx, params, workers)
  step = compiler(make_step(tx, gradient, workers))
  for t in range(steps):
    state, params = step(t, state, params)
    yield state, params
