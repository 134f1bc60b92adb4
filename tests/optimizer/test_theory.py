"""What the paper's theory says of moments and step sizes, on real runs of the transform."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from desloc_jax import desloc, half_life
from desloc_jax.model import GPTConfig, init_params, next_token_loss
from desloc_jax.optimizer.inner import make_inner
from tests import workers


def test_moments_of_a_gpt_drift_no_further_than_the_bounds():
  """|u_{t+K} - u_t| <= 2 rho (1 - b1^K) and |v_{t+K} - v_t| <= 2 rho^2 (1 - b2^K) a coordinate.

  The gradient's coordinates are clipped to rho; nothing is averaged in these K steps.
  """
  rho, b1, b2, steps = 1e-3, 0.95, 0.99, 24
  config = GPTConfig(64, 1, 32, 2, seq_len=16)
  params = init_params(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (steps, 2, 2, 17), 0, 64)
  inner = make_inner('adam', 1e-2, b1=b1, b2=b2, clip_value=rho)
  tx = desloc(inner, {'params': steps + 1, 'mu': None, 'nu': None})
  loss = functools.partial(next_token_loss, config=config)
  gradient = lambda t, worker, x: jax.grad(loss)(x, tokens[t, worker])
  trajectory = [state.inner[1] for state, _ in workers.run(tx, params, gradient, 2, steps)]
  largest = 0.0
  for t in range(0, steps - 1, 4):
    for k in (1, 4, steps - 1 - t):
      for field, decay, bound in (('mu', b1, 2 * rho), ('nu', b2, 2 * rho**2)):
        if t + k >= steps:
          continue
        change = jax.tree.map(
          lambda a, b: float(jnp.abs(a - b).max()),
          getattr(trajectory[t + k], field),
          getattr(trajectory[t], field),
        )
        share = max(jax.tree.leaves(change)) / (bound * (1 - decay**k))
        assert share <= 1 + 1e-4
        largest = max(largest, share)
  assert largest > 0.3  # Near enough to the bound for a wrong constant to break it.


@pytest.mark.parametrize('decay', [0.9, 0.95, 0.99])
def test_a_moment_of_noise_forgets_half_in_a_half_life(decay):
  """The correlation of u_{t+K} with u_t is b^K: one half at K = ln(0.5) / ln(b)."""
  lag = round(half_life(decay))
  start = 20 * lag  # Until the moment has forgotten that it began at zero.
  noise = jax.random.normal(jax.random.key(0), (start + lag + 1, 20_000))
  tx = desloc(optax.ema(decay, debias=False), {'params': None, 'ema': None})
  state = workers.init(tx, {'w': jnp.zeros(20_000)}, 1)
  step = workers.make_step(tx, lambda t, _, x: {'w': noise[t]}, 1)

  run = jax.jit(
    lambda state, a, b: jax.lax.fori_loop(
      a, b, lambda t, carry: step(t, *carry), (state, {'w': jnp.zeros(20_000)})
    )[0]
  )
  before = run(state, 0, start)
  after = run(before, start, start + lag)
  u, later = (np.asarray(s.inner.ema['w'][0]) for s in (before, after))
  assert np.corrcoef(u, later)[0, 1] == pytest.approx(decay**lag, abs=0.03)
  assert decay**lag == pytest.approx(0.5, abs=0.03)  # A lag is a whole number of steps.


def largest_theoretical_rate(smoothness, momentum, p_x, p_u, heterogeneity=1.0):
  """eta_0 of DES-LOC-SGDM: the theorem's bound on the step size."""
  psi = 4 * (1 - p_x) / p_x**2 * (1 - momentum) * (1 - p_u) / (1 - (1 - p_u) * momentum)
  drift = 1 / (6 * math.sqrt(psi * max(1.0, heterogeneity**2 - 1))) if psi else math.inf
  return min(1 - momentum, drift) / (4 * smoothness)


def final_distance(rate, momentum, k_x, k_u, steps=4000):
  """Returns the consensus' distance from the optimum of a noisy quadratic, 4 workers."""
  curvature = jnp.linspace(0.1, 1.0, 16)  # Smoothness 1.
  inner = optax.chain(optax.ema(momentum, debias=False), optax.scale(-rate))
  tx = desloc(inner, {'params': k_x, 'ema': k_u}, coin_key=jax.random.key(7))

  def gradient(t, worker, x):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), t), worker)
    shift = 0.5 * (worker - 1.5)  # Each worker pulls to another point; the mean is 0.
    return {'w': curvature * (x['w'] - shift) + 0.1 * jax.random.normal(key, (16,))}

  params = {'w': jnp.full(16, 5.0)}
  state = workers.init(tx, params, 4)
  step = workers.make_step(tx, gradient, 4)
  run = jax.jit(
    lambda state, params: jax.lax.fori_loop(
      0, steps, lambda t, carry: step(t, *carry), (state, params)
    )
  )
  return float(jnp.abs(run(state, params)[1]['w']).max())


def test_sgdm_is_stable_below_the_step_size_of_the_theorem():
  momentum, k_x, k_u = 0.9, 8, 24
  rate = largest_theoretical_rate(1.0, momentum, 1 / k_x, 1 / k_u)
  assert final_distance(rate, momentum, k_x, k_u) < 4.0  # From 5, and falling.
  assert final_distance(rate / 4, momentum, k_x, k_u) < 5.0
  assert not final_distance(1e5 * rate, momentum, k_x, k_u) < 5.0  # The test can tell.


def test_more_frequent_momentum_syncs_permit_larger_steps_in_the_theorem():
  rates = [largest_theoretical_rate(1.0, 0.9, 1 / 16, 1 / k_u) for k_u in (1, 4, 16, 64)]
  assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]


# Curvature of each worker's loss; smoothness 3, mean 1. One worker alone would run away.
CURVATURES = jnp.array([3.0, 1.0, 1.0, -1.0])


def largest_stable_rate(rates, momentum, k_x, k_u, steps=1024):
  """Returns the first of the rising rates at which DES-LOC-SGDM has not come nearer to 0, measured."""

  def final(rate):
    inner = optax.chain(optax.ema(momentum, debias=False), optax.scale(-rate))
    tx = desloc(inner, {'params': k_x, 'ema': k_u})
    params = {'w': jnp.ones(1)}
    step = workers.make_step(tx, lambda t, worker, x: {'w': CURVATURES[worker] * x['w']}, 4)
    carry = workers.init(tx, params, 4), params
    carry = jax.lax.fori_loop(0, steps, lambda t, carry: step(t, *carry), carry)
    return jnp.abs(carry[1]['w'][0])

  distances = np.asarray(jax.jit(jax.vmap(final))(rates))
  return rates[np.flatnonzero(~(distances < 1.0))[0]]


def largest_stable_rate_by_eigenvalues(rates, momentum, k_x, k_u):
  """The same from the spectral radius of the linear map over a whole round, in float64."""
  curvature, mean, identity = np.diag(np.float64(CURVATURES)), np.full((4, 4), 0.25), np.eye(4)
  for rate in np.float64(rates):
    moment = np.block([(1 - momentum) * curvature, momentum * identity])
    local = np.vstack([np.block([identity, 0 * identity]) - rate * moment, moment])
    total = np.eye(8)
    for t in range(1, math.lcm(k_x, k_u) + 1):
      total = local @ total
      total[:4] = mean @ total[:4] if t % k_x == 0 else total[:4]
      total[4:] = mean @ total[4:] if t % k_u == 0 else total[4:]
    if np.abs(np.linalg.eigvals(total)).max() >= 1:
      return rate
  raise AssertionError('all of these rates are stable')


def test_more_frequent_momentum_syncs_permit_larger_steps_in_a_run():
  rates = jnp.geomspace(0.05, 3.0, 64)
  measured = []
  for k_u in (1, 2, 8, 32, 64):
    measured.append(float(largest_stable_rate(rates, 0.9, 8, k_u)))
    expected = largest_stable_rate_by_eigenvalues(rates, 0.9, 8, k_u)
    assert measured[-1] == pytest.approx(expected, rel=0.15)  # Two grid steps.
  assert measured == sorted(measured, reverse=True)
  assert measured[0] > 5 * measured[-1]  # 1.64 at K_u = 1, 0.21 at K_u = 64.
