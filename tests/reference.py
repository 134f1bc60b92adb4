"""DES-LOC in NumPy float64, written from Algorithm 1 of arXiv:2505.22549: the tests' oracle.

x, u, v are [workers, n]. Nothing here is shared with the package under test.
"""

import numpy as np


def clip(g, rho):
  norm = np.sqrt((g**2).sum(axis=-1, keepdims=True))
  return np.where(norm > rho, g * rho / norm, g)


def adam_step(g, u, v, t, eta, b1=0.9, b2=0.999, eps=1e-8):
  """Returns (update, u, v) with Adam's bias correction from the local step count t = 0, 1, ..."""
  u = b1 * u + (1 - b1) * g
  v = b2 * v + (1 - b2) * g**2
  u_hat, v_hat = u / (1 - b1 ** (t + 1)), v / (1 - b2 ** (t + 1))
  return -eta * u_hat / (np.sqrt(v_hat) + eps), u, v


def sgdm_step(g, u, v, t, eta, momentum=0.9):
  u = g + momentum * u
  return -eta * u, u, v


def mean(z):
  return np.broadcast_to(z.mean(axis=0), z.shape)


def desloc(gradient, x0, steps, periods, local_step, *, timing, rho, outer=None):
  """Runs DES-LOC.

  Args:
    gradient: (t, x [workers, n]) -> [workers, n].
    x0: [workers, n], equal rows.
    periods: (K_x, K_u, K_v); None: never.
    local_step: (g, u, v, t) -> (update, u, v).
    timing: 'post' or 'pre'.
    rho: norm that gradients are clipped to.
    outer: (lr, momentum) of an outer Nesterov SGD, or None for averaging.

  Returns:
    x [steps, workers, n] after each step, and the consensus [steps, n].
  """
  k_x, k_u, k_v = periods
  x, u, v = x0.copy(), np.zeros_like(x0), np.zeros_like(x0)
  x_ref, outer_momentum = x0[0].copy(), np.zeros_like(x0[0])
  locals_, consensus = [], []

  def due(period, t):
    return period is not None and t > 0 and t % period == 0

  def sync_x(x):
    nonlocal x_ref, outer_momentum
    if outer is None:
      x_ref = x.mean(axis=0)
    else:
      lr, momentum = outer
      delta = x_ref - x.mean(axis=0)
      outer_momentum = delta + momentum * outer_momentum
      x_ref = x_ref - lr * (delta + momentum * outer_momentum)
    return np.broadcast_to(x_ref, x.shape).copy()

  for t in range(steps):
    g = clip(gradient(t, x), rho)
    if timing == 'pre':
      u = mean(u) if due(k_u, t) else u
      v = mean(v) if due(k_v, t) else v
      x = sync_x(x) if due(k_x, t) else x
    update, u, v = local_step(g, u, v, t)
    x = x + update
    if timing == 'post':
      u = mean(u) if due(k_u, t + 1) else u
      v = mean(v) if due(k_v, t + 1) else v
      x = sync_x(x) if due(k_x, t + 1) else x
    locals_.append(x.copy())
    consensus.append(x_ref.copy())
  return np.stack(locals_), np.stack(consensus)
