"""The point with the least sum of distances."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.syncs.byzantine.robust import robust, Rule, Senders, Squares, summable
from desloc_jax.optimizer.syncs.sync import Sync


def geometric_median(
  byzantine: int = 0,
  neighbours: bool = False,
  smoothing: float = 0.1,
  rounds: int = 8,
  positive: bool = False,
) -> Sync:
  r"""The smoothed geometric median, by Weiszfeld's iteration.

  .. math::
    z \leftarrow \frac{\sum_m c_m x_m}{\sum_m c_m}, \quad
    c_m = \frac{w_m}{\max(\lVert x_m - z \rVert, \nu r)}

  with r the typical distance: the least, over workers, of the median of the distances to others.
  (The papers' :math:`\nu` is a length itself, for momenta of length 1 or so; differences of
  parameters have any.) It begins at the worker with that median, so that a vector that is far away
  needs no rounds to be left behind. The distances to z come from those between workers, so that a
  round sends nothing.

  Args:
    byzantine: see `robust`, for the nearest neighbours: the median itself bears any number whose
      weights are below half.
    neighbours: see `robust`.
    smoothing: :math:`\nu`, above 0: who is nearer than that counts no more.
    rounds: of the iteration.
    positive: see `robust`.

  Raises:
    ValueError: an argument is out of range; see also `robust`.

  References:
    Pillutla et al., `Robust Aggregation for Federated Learning
    <https://arxiv.org/abs/1912.13445>`_, 2019
  """
  if not smoothing > 0 or rounds < 1:
    raise ValueError(f'expected smoothing > 0 and rounds >= 1, got {smoothing} and {rounds}.')

  def weigh(squares: Squares, senders: Senders) -> jax.Array:
    first, typical = _centre(squares, senders)
    least = jnp.maximum(smoothing * typical, 1e-30)  # Most of them may be the same.
    known = summable(squares, senders).pairs
    factors = jax.nn.one_hot(first, len(squares.norms), dtype=jnp.float32)
    for _ in range(rounds):
      to_all = jnp.matmul(known, factors, precision='highest')
      lengths = jnp.sqrt(jnp.maximum(to_all - (factors * to_all).sum() / 2, 0))
      factors = senders.weights / jnp.maximum(lengths, least)
      total = factors.sum()
      factors = factors / jnp.where(total > 0, total, 1)
    return factors

  return robust(Rule(weigh=weigh), byzantine, neighbours, positive=positive)


def _centre(squares: Squares, senders: Senders) -> tuple[jax.Array, jax.Array]:
  """Returns who has the least median distance to those that are there, itself too, and which."""
  ordered = jnp.sort(squares.pairs, axis=1)
  medians = jnp.sqrt(ordered[:, senders.number // 2])
  medians = jnp.where(senders.present, medians, jnp.inf)
  first = jnp.argmin(medians)
  return first, jnp.where(jnp.isfinite(medians[first]), medians[first], 0)
