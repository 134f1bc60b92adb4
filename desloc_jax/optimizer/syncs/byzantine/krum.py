"""One worker's vector for all: that which most others are near."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.syncs.byzantine.robust import robust, Rule, Senders, Squares
from desloc_jax.optimizer.syncs.sync import Sync


def krum(byzantine: int, neighbours: bool = False, positive: bool = False) -> Sync:
  r"""Takes the vector with the least mean squared distance to its W - f - 1 nearest others.

  .. math::
    X \leftarrow x_k, \quad
    k = \arg\min_m \sum_{j \in N_m} \lVert x_m - x_j \rVert^2, \quad |N_m| = W - f - 1

  The first printed form has W - f - 2 of them and needs W > 2 f + 2; this one, of the reference
  below, f < W / 2. Weights only say who is there.

  Arguments, errors and what it returns are those of `robust`.

  References:
    Blanchard et al., `Machine Learning with Adversaries <https://arxiv.org/abs/1703.02757>`_, 2017;
    Allouah et al., `Fixing by Mixing <https://arxiv.org/abs/2302.01772>`_, 2023
  """
  return robust(Rule(weigh=_weigh), byzantine, neighbours, positive=positive)


def _weigh(squares: Squares, senders: Senders) -> jax.Array:
  most = jnp.finfo(jnp.float32).max
  others = jnp.where(jnp.eye(len(squares.norms), dtype=bool), jnp.inf, squares.pairs)
  others = jnp.sort(others, axis=1)
  counted = jnp.arange(len(squares.norms)) < senders.number - senders.liars - 1
  scores = jnp.minimum(jnp.where(counted, others, 0).sum(axis=1), most)
  chosen = jnp.argmin(jnp.where(senders.present, scores, jnp.inf))
  return jax.nn.one_hot(chosen, len(scores), dtype=jnp.float32)
