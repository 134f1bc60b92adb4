"""DES-LOC in NumPy float64, written from Algorithm 1 of arXiv:2505.22549: the tests' oracle.

x, u, v are [workers, n]. Nothing here is shared with the package under test.
"""

import numpy as np


def moment_bound(b1, b2):
  """Returns of |u| / sqrt(v) what Adam can reach, and a hundredth more."""
  return 1.01 * (1 - b1) / np.sqrt((1 - b2) * (1 - b1**2 / b2))


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


def sgd_step(g, u, v, t, eta):
  return -eta * g, u, v


def adopt_step(g, u, v, t, eta, b1=0.95, b2=0.9999, eps=1e-6):
  """Step 0 only sets v; then the second moment is used before it is updated."""
  if t == 0:
    return np.zeros_like(g), u, g**2
  n = np.clip(g / np.maximum(np.sqrt(v), eps), -(t**0.25), t**0.25)
  u = b1 * u + (1 - b1) * n
  return -eta * u, u, b2 * v + (1 - b2) * g**2


def qh_adam_step(g, u, v, t, eta, b1=0.999, b2=0.999, eps=1e-8, w=0.98):
  """MT-DAO: [(1-w) g + w u] / (sqrt(v) + eps), as printed: no bias correction."""
  u = b1 * u + (1 - b1) * g
  v = b2 * v + (1 - b2) * g**2
  return -eta * ((1 - w) * g + w * u) / (np.sqrt(v) + eps), u, v


def lion_step(g, u, v, t, eta, b1=0.9, b2=0.99):
  return -eta * np.sign(b1 * u + (1 - b1) * g), b2 * u + (1 - b2) * g, v


def mean(z, weights):
  return np.broadcast_to(np.average(z, axis=0, weights=weights), z.shape)


def ddp(gradient, x0, steps, local_step, *, rho):
  """Runs data-parallel training: the mean gradient is clipped and steps one model.

  Returns:
    x [steps, n].
  """
  x, u, v = x0[0].copy(), np.zeros_like(x0[0]), np.zeros_like(x0[0])
  trajectory = []
  for t in range(steps):
    g = clip(gradient(t, np.broadcast_to(x, x0.shape)).mean(axis=0), rho)
    update, u, v = local_step(g, u, v, t)
    x = x + update
    trajectory.append(x)
  return np.stack(trajectory)


def desloc(
  gradient,
  x0,
  steps,
  periods,
  local_step,
  *,
  timing,
  rho,
  outer=None,
  reset=False,
  coins=None,
  warmup=0,
  weights=None,
  bound=None,
):
  """Runs DES-LOC.

  Args:
    gradient: (t, x [workers, n]) -> [workers, n].
    x0: [workers, n], equal rows.
    periods: (K_x, K_u, K_v); None: never.
    local_step: (g, u, v, t) -> (update, u, v).
    timing: 'post' or 'pre'.
    rho: norm that gradients are clipped to.
    outer: (lr, momentum) of an outer Nesterov SGD, or None for averaging.
    reset: whether u and v become zero when x is averaged.
    coins: booleans [steps, 3] for x, u and v that say when to average, instead of periods.
    warmup: steps at the start in which everything is averaged, without outer or reset.
    weights: [steps, workers] of the averages; None: all the same.
    bound: of |u| / sqrt(v), kept by raising v when one of them is averaged alone; None: the
      algorithm as printed.

  Returns:
    x [steps, workers, n] after each step, and the consensus [steps, n].
  """
  x, u, v = x0.copy(), np.zeros_like(x0), np.zeros_like(x0)
  x_ref, outer_momentum = x0[0].copy(), np.zeros_like(x0[0])
  locals_, consensus = [], []

  def due(which, t, offset):
    if t < warmup:
      return True
    if coins is not None:
      return coins[t][which]
    period = periods[which]
    return period is not None and t + offset > 0 and (t + offset) % period == 0

  def sync_x(x, t, w):
    nonlocal x_ref, outer_momentum
    if outer is None or t < warmup:
      x_ref = np.average(x, axis=0, weights=w)
    else:
      lr, momentum = outer
      delta = x_ref - np.average(x, axis=0, weights=w)
      outer_momentum = delta + momentum * outer_momentum
      x_ref = x_ref - lr * (delta + momentum * outer_momentum)
    return np.broadcast_to(x_ref, x.shape).copy()

  def hold(u, v, t, offset):
    alone = bound is not None and due(1, t, offset) != due(2, t, offset)
    return np.maximum(v, (u / bound) ** 2) if alone else v

  for t in range(steps):
    g = clip(gradient(t, x), rho)
    w = None if weights is None else weights[t]
    if timing == 'pre':
      u = mean(u, w) if due(1, t, 0) else u
      v = mean(v, w) if due(2, t, 0) else v
      v = hold(u, v, t, 0)
      x = sync_x(x, t, w) if due(0, t, 0) else x
    update, u, v = local_step(g, u, v, t)
    x = x + update
    if timing == 'post':
      u = mean(u, w) if due(1, t, 1) else u
      v = mean(v, w) if due(2, t, 1) else v
      v = hold(u, v, t, 1)
      if due(0, t, 1):
        x = sync_x(x, t, w)
        if reset and t >= warmup:
          u, v = np.zeros_like(u), np.zeros_like(v)
    locals_.append(x.copy())
    consensus.append(x_ref.copy())
  return np.stack(locals_), np.stack(consensus)
