"""Differences no longer than the median one."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.syncs.byzantine.robust import robust, Rule, Senders, Squares
from desloc_jax.optimizer.syncs.sync import Sync


def clip_to_median(byzantine: int = 0, neighbours: bool = False, positive: bool = False) -> Sync:
  r"""Shortens each worker's difference to the median length, and averages.

  .. math::
    X \leftarrow X - \frac1W \sum_m \min\Big(1, \frac{\mathrm{median}_k \lVert D_k \rVert}
    {\lVert D_m \rVert}\Big) D_m, \quad D_m = X - x_m

  The lengths are of the whole quantity, and measured by those who get the slices, not told by those
  who sent them. A quantity without a reference is its own difference. It bounds what one worker can
  do; it does not undo it: one of eight that sends the opposite still takes two eighths.

  Arguments, errors and what it returns are those of `robust`.

  References:
    Lidin et al., `Covenant-72B <https://arxiv.org/abs/2603.08163>`_, 2026
  """
  return robust(Rule(weigh=_weigh), byzantine, neighbours, differences=True, positive=positive)


def _weigh(squares: Squares, senders: Senders) -> jax.Array:
  lengths = jnp.sqrt(squares.norms)
  ordered, count = jnp.sort(lengths), senders.number
  middle = (ordered[jnp.maximum(count - 1, 0) // 2] + ordered[count // 2]) / 2
  scales = jnp.where(lengths > middle, middle / lengths, 1.0)
  total = senders.weights.sum()
  return senders.weights * scales / jnp.where(total > 0, total, 1)
