"""Problems with another gradient on each worker, for NumPy and for JAX."""

import jax.numpy as jnp
import numpy as np


def quadratic(workers, steps, size=7):
  """Returns noisy gradients of another quadratic on each worker, and a start [size].

  Gradients of all workers: (t, x [workers, size]) -> [workers, size]; and of one of them:
  (t, worker, {'w': [size]}) -> {'w': [size]}.
  """
  rng = np.random.default_rng(0)
  curvature = rng.uniform(0.5, 2.0, (workers, size))
  minimum = rng.normal(size=(workers, size))
  noise = 0.3 * rng.normal(size=(steps, workers, size))

  def of_all(t, x):
    return curvature * (x - minimum) + noise[t]

  def of_worker(t, worker, x):
    c, m, n = (jnp.asarray(a) for a in (curvature, minimum, noise))
    return {'w': c[worker] * (x['w'] - m[worker]) + n[t, worker]}

  return of_all, of_worker, rng.normal(size=size)


def rosenbrock(workers, steps):
  """Returns gradients of the paper's toy, (1 - a)^2 + 100 (b - a^2)^2, with noise of 1.5."""
  noise = 1.5 * np.random.default_rng(1).normal(size=(steps, workers, 2))

  def gradient(lib, a, b):
    return lib.stack([-2 * (1 - a) - 400 * a * (b - a**2), 200 * (b - a**2)], axis=-1)

  def of_all(t, x):
    return gradient(np, x[:, 0], x[:, 1]) + noise[t]

  def of_worker(t, worker, x):
    return {'w': gradient(jnp, x['w'][0], x['w'][1]) + jnp.asarray(noise)[t, worker]}

  return of_all, of_worker, np.array([-0.5, 0.8])
