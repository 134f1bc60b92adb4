"""Who is away counts with what it sent last."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.averaging import worker_count
from desloc_jax.optimizer.syncs.sync import difference, Memory, moved, Sync


def fedstale(sync: Sync, beta: float = 0.5) -> Sync:
  r"""Adds to the mean over those who are there what it lacks of all, by their differences of before.

  With S who is there, D the differences and h those of the last sync at which a worker was:

  .. math::
    D = \frac1{|S|} \sum_{m \in S} D_m
      + \beta \Big(\frac1W \sum_m h_m - \frac1{|S|} \sum_{m \in S} h_m\Big), \quad
    h_m \leftarrow D_m \text{ for } m \in S

  h is zero before the first. Each worker sends its part of the sum, so that one sync of `sync` does:
  :math:`s_m D_m + \beta (1 - s_m) h_m`, with :math:`s_m = W w_m / \sum_j w_j`. That of a worker
  that is away is its h, which its own process holds: this is for workers that miss a sync, not for
  machines that are gone. All count the same in the mean of h.

  Args:
    sync: how the parts are averaged; all of them count in it.
    beta: weight of what is remembered, in [0, 1]: 0 is the mean over who is there, 1 is FedVARP.

  Returns:
    A `Sync` that remembers one copy of the quantity a worker beside what `sync` does. With all
    workers there, and alike in weight, it is `sync`, bit for bit.

  Raises:
    ValueError: `beta` is out of range.

  References:
    Rodio and Neglia, `FedStale <https://arxiv.org/abs/2405.04171>`_, 2024; Jhunjhunwala et al.,
    `FedVARP <https://arxiv.org/abs/2207.14130>`_, 2022
  """
  if not 0 <= beta <= 1:
    raise ValueError(f'beta is {beta}; expected a number in [0, 1].')

  def init(tree):
    own, shared = sync.init(tree)
    return Memory({'stale': jax.tree.map(jnp.zeros_like, tree), 'sync': own}, shared)

  def reduce(local, reference, memory, context):
    stale, inner = memory.own['stale'], Memory(memory.own['sync'], memory.shared)
    news = difference(local, reference)
    if context.share is not None:
      weight, total = context.share
      part = weight * worker_count(context.axis_name) / jnp.where(total > 0, total, 1)
      is_there = weight > 0

      def of_sum(d, h):
        by = part.astype(d.dtype)
        return jnp.where(is_there, by * d, 0) + beta * (1 - by) * h

      # Whose part is one sends its own bits.
      sent = moved(local, reference, jax.tree.map(of_sum, news, stale))
      local = jax.tree.map(lambda new, x: jnp.where(part == 1, x, new), sent, local)
      context = context._replace(share=None)
      news = jax.tree.map(lambda d, h: jnp.where(is_there, d, h), news, stale)
    agreed, inner = sync.reduce(local, reference, inner, context)
    return agreed, Memory({'stale': news, 'sync': inner.own}, inner.shared)

  return sync._replace(init=init, reduce=reduce)
