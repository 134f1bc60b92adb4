"""SCAFFOLD's control variates: each worker's gradients, corrected by how they differ from all."""

from typing import NamedTuple

import jax
import optax

from desloc_jax.optimizer.averaging import at_least_float32

# The state field: of `periods`, and of what `syncs.control` is for.
CONTROL = 'control'


class ControlState(NamedTuple):
  """State of `control_variates` on one worker: one field, of two trees like the parameters."""

  control: tuple[optax.Updates, optax.Updates]  # c - c_m, and the sum of gradients since the sync.


def control_variates() -> optax.GradientTransformation:
  r"""Adds to a worker's gradients what those of all had beyond its own between the last two syncs.

  .. math::
    \hat g_m = g_m - c_m + c

  It goes in front of the inner optimizer: `optax.chain(control_variates(), optax.sgd(0.1))`. The
  field `control` of its state is averaged by `syncs.control`, which makes :math:`c_m` and :math:`c`,
  both zero at first, of the gradients that it has summed up.

  Returns:
    A transformation with two float32 copies of the parameters.

  References:
    Karimireddy et al., `SCAFFOLD <https://arxiv.org/abs/1910.06378>`_, 2020
  """

  def init(params):
    zeros = at_least_float32(optax.tree.zeros_like(params))
    return ControlState((zeros, zeros))

  def update(updates, state, params=None):
    del params
    correction, total = state.control
    corrected = jax.tree.map(lambda g, c: g + c.astype(g.dtype), updates, correction)
    total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, updates)
    return corrected, ControlState((correction, total))

  return optax.GradientTransformation(init, update)
