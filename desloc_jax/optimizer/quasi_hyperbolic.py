"""Quasi-hyperbolic Adam and ADOPT: the step mixes the gradient with a slow first moment (MT-DAO)."""

import jax
import jax.numpy as jnp
import optax


def scale_by_qh_adam(
  b1: float = 0.999,
  b2: float = 0.999,
  eps: float = 1e-8,
  w: float = 0.98,
  *,
  bias_correction: bool = True,
) -> optax.GradientTransformation:
  r"""Rescales updates by quasi-hyperbolic Adam.

  .. math::
    u_t = \beta_1 u_{t-1} + (1 - \beta_1) g_t, \quad
    v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
    \Delta_t = \frac{(1 - w) g_t + w u_t}{\sqrt{v_t} + \epsilon}

  With :math:`w = 1` it is `optax.scale_by_adam`, with :math:`w = 0` RMSProp.

  Args:
    b1: decay of the first moment; close to one, so that it outlives many sync periods.
    b2: decay of the second moment.
    eps: added to the root, not under it.
    w: weight of the first moment in the step.
    bias_correction: divide both moments by one minus their decay to the power of the step count, as
      Adam does. False is the update as MT-DAO prints it.

  Returns:
    An `optax.GradientTransformation` whose state is an `optax.ScaleByAdamState`.

  References:
    Iacob et al., `MT-DAO <https://arxiv.org/abs/2510.05361>`_, 2025; Ma and Yarats,
    `Quasi-hyperbolic momentum and Adam <https://arxiv.org/abs/1810.06801>`_, 2019
  """

  def init_fn(params):
    zeros = optax.tree.zeros_like(params)
    return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

  def update_fn(updates, state, params=None):
    del params
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
    count = optax.safe_increment(state.count)
    mu_hat = optax.tree.bias_correction(mu, b1, count) if bias_correction else mu
    nu_hat = optax.tree.bias_correction(nu, b2, count) if bias_correction else nu
    updates = jax.tree.map(
      lambda g, u, v: _mix(g, u, w) / (jnp.sqrt(v) + eps), updates, mu_hat, nu_hat
    )
    return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

  return optax.GradientTransformation(init_fn, update_fn)


def scale_by_qh_adopt(
  b1: float = 0.999, b2: float = 0.9999, eps: float = 1e-6, w: float = 0.98
) -> optax.GradientTransformation:
  r"""Rescales updates by quasi-hyperbolic ADOPT.

  .. math::
    n_t = \mathrm{clip}\Big(\frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)}, \pm t^{1/4}\Big), \quad
    u_t = \beta_1 u_{t-1} + (1 - \beta_1) n_t, \quad
    \Delta_t = (1 - w) n_t + w u_t

  The first step only sets :math:`v = g^2` and is zero. With :math:`w = 1` it is
  `optax.contrib.scale_by_adopt`.

  Args:
    b1: decay of the first moment of the normalised gradients.
    b2: decay of the second moment, which is updated after it is used.
    eps: least denominator.
    w: weight of the first moment in the step.

  Returns:
    An `optax.GradientTransformation` whose state is an `optax.ScaleByAdamState`.

  References:
    Iacob et al., `MT-DAO <https://arxiv.org/abs/2510.05361>`_, 2025; Taniguchi et al.,
    `ADOPT <https://arxiv.org/abs/2411.02853>`_, 2024
  """

  def init_fn(params):
    zeros = optax.tree.zeros_like(params)
    return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

  def update_fn(updates, state, params=None):
    del params
    first = state.count == 0
    bound = state.count**0.25
    normalised = jax.tree.map(
      lambda g, v: jnp.clip(g / jnp.maximum(jnp.sqrt(v), eps), -bound, bound).astype(g.dtype),
      updates,
      state.nu,
    )
    mu = optax.tree.update_moment(normalised, state.mu, jnp.where(first, 1.0, b1), 1)
    nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, jnp.where(first, 0.0, b2), 2)
    updates = jax.tree.map(lambda n, u: _mix(n, u, w), normalised, mu)
    count = optax.safe_increment(state.count)
    return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

  return optax.GradientTransformation(init_fn, update_fn)


def _mix(gradient: jax.Array, moment: jax.Array, w: float) -> jax.Array:
  return (1 - w) * gradient + w * moment
