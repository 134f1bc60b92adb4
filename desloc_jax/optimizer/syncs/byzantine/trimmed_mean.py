"""Means of what lies in the middle, each coordinate by itself."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.syncs.byzantine.robust import robust, Rule, Senders
from desloc_jax.optimizer.syncs.mean import mean
from desloc_jax.optimizer.syncs.sync import Sync


def trimmed_mean(byzantine: int, neighbours: bool = False, positive: bool = False) -> Sync:
  r"""Drops the f smallest and the f largest values of each coordinate, and averages the rest.

  .. math::
    X_i \leftarrow \frac{1}{W - 2f} \sum_{k=f+1}^{W-f} x_{(k),i}

  where :math:`x_{(1),i} \le \ldots \le x_{(W),i}`. What is not a number is largest. With f = 0 it is
  the plain mean, and sent as it is.

  Arguments, errors and what it returns are those of `robust`.

  References:
    Yin et al., `Byzantine-Robust Distributed Learning <https://arxiv.org/abs/1803.01498>`_, 2018
  """
  if byzantine == 0:
    return mean()
  return robust(
    Rule(combine=lambda x, s: _middle(x, s, s.liars)), byzantine, neighbours, positive=positive
  )


def median(byzantine: int = 0, neighbours: bool = False, positive: bool = False) -> Sync:
  r"""The median of each coordinate; of an even number of workers, the mean of the two in the middle.

  It bears any number of lies below W / 2; `byzantine` is for the nearest neighbours.

  Arguments, errors and what it returns are those of `robust`.

  References:
    Yin et al., `Byzantine-Robust Distributed Learning <https://arxiv.org/abs/1803.01498>`_, 2018
  """
  most = lambda x, s: _middle(x, s, jnp.maximum(s.number - 1, 0) // 2)
  return robust(Rule(combine=most), byzantine, neighbours, positive=positive)


def _middle(rows: jax.Array, senders: Senders, dropped: jax.Array) -> jax.Array:
  """Returns the mean, by weight, of [workers, ...] without so many at each end; 0 if none is there."""
  column = lambda x: jnp.broadcast_to(x.reshape(-1, *[1] * (rows.ndim - 1)), rows.shape)
  # Those who are not there come last.
  absent = column((~senders.present).astype(jnp.int8))
  weights = column(senders.weights.astype(rows.dtype))
  _, rows, weights = jax.lax.sort((absent, rows, weights), dimension=0, num_keys=2)
  place = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
  kept = (place >= dropped) & (place < senders.number - dropped)
  weights = jnp.where(kept, weights, 0)
  total = weights.sum(axis=0)
  return jnp.where(kept, rows * weights, 0).sum(axis=0) / jnp.where(total > 0, total, 1)
