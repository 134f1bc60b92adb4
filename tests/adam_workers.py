"""Workers with other gradients and Adam, for tests of the transform."""

import jax
import jax.numpy as jnp
import optax

from tests import workers

PARAMS = {'w': jnp.linspace(-1.0, 1.0, 1001), 'b': jnp.float32(0.3)}
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.03))


def gradient(t, worker, x):
  """Another pull on each worker, nonlinear and changing in time."""
  return jax.tree.map(lambda p: p - jnp.sin(worker + 1.0 + 0.1 * t + 3 * p), x)


def last(tx, count=4, steps=12, params=PARAMS):
  *_, (state, consensus) = workers.run(tx, params, gradient, count, steps)
  return state, consensus


def adam_periods(params, mu, nu):
  return {'params': params, 'mu': mu, 'nu': nu}
