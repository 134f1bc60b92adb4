"""How workers agree on control variates: whole, or compressed."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.averaging import worker_count, worker_mean
from desloc_jax.optimizer.control_variates import CONTROL
from desloc_jax.optimizer.syncs.compressed.channels import Channel, worker_counts
from desloc_jax.optimizer.syncs.compressed.vectors import on_rows
from desloc_jax.optimizer.syncs.sync import Memory, Sync, Tree


def control(channel: Channel | None = None, alpha: float = 1.0, beta: float = 1.0) -> Sync:
  r"""Sends how the mean of a worker's gradients changed.

  With :math:`\bar g_m` the mean of K gradients since the last sync, S who counts, and C the channel:

  .. math::
    v_m \leftarrow v_m + \beta (\bar g_m - v_m), \quad d_m = C(\alpha (v_m - c_m)), \quad
    c_m \leftarrow c_m + d_m, \quad c \leftarrow c + \frac{|S|}{W} \frac1{|S|} \sum_{m \in S} d_m

  Without a channel, and with :math:`\alpha = \beta = 1`, that is SCAFFOLD (its second option, whose
  :math:`(X - x_m) / (K \eta)` is the mean of the gradients where the inner optimizer is SGD). With
  one it is SCALLION's way to send them, and with :math:`\beta < 1` SCAFCOM's. There one message
  moves the parameters too; here they have a sync of their own.

  Args:
    channel: that compresses; None: float32.
    alpha: of what is new, in (0, 1].
    beta: of the momentum, in (0, 1]; 1: none.

  Returns:
    A `Sync` for the field `control` of `control_variates`, of which each worker has a result of its
    own. It remembers one copy of the parameters, c, and another, v, where `beta` is less than 1.

  Raises:
    ValueError: `alpha` or `beta` is out of range, or the channel takes numbers >= 0 only.

  References:
    Karimireddy et al., `SCAFFOLD <https://arxiv.org/abs/1910.06378>`_, 2020; Huang et al.,
    `Stochastic Controlled Averaging <https://arxiv.org/abs/2308.08165>`_, 2023
  """
  for name, value in (('alpha', alpha), ('beta', beta)):
    if not 0 < value <= 1:
      raise ValueError(f'{name} is {value}; expected a number in (0, 1].')
  if channel and channel.positive:
    raise ValueError('gradients have signs: logarithms cannot encode them.')

  def init(tree):
    c, _ = _halves(tree)
    copies = lambda: [jnp.zeros_like(x) for x in c]
    return Memory(own=copies() if beta < 1 else (), shared=copies())

  def reduce(local, reference, memory, context):
    del reference
    corrections, totals = _halves(local)
    share, counts = context.share, jnp.ones([], bool)
    if share is not None:
      counts = share.weight > 0
    mine = jax.tree.map(jnp.subtract, memory.shared, corrections)
    means = jax.tree.map(lambda t: t / context.since[CONTROL].astype(t.dtype), totals)
    if beta < 1:
      means = jax.tree.map(lambda v, g: v + beta * (jnp.where(counts, g, v) - v), memory.own, means)
    news = jax.tree.map(lambda v, c: jnp.where(counts, alpha * (v - c), 0), means, mine)
    sent, agreed = exchange(news, context)
    if share is not None:
      there = jax.lax.psum(counts.astype(jnp.float32), context.axis_name)
      part = there / worker_count(context.axis_name)
      agreed = jax.tree.map(lambda d: part.astype(d.dtype) * d, agreed)
    c = jax.tree.map(jnp.add, memory.shared, agreed)
    corrections = jax.tree.map(lambda c, m, d: c - (m + d), c, mine, sent)
    results = [*corrections, *(jnp.zeros_like(t) for t in totals)]
    result = jax.tree.unflatten(jax.tree.structure(local), results)
    return result, Memory(own=means if beta < 1 else (), shared=c)

  def exchange(news, context):
    """Returns what this worker's message came to, and the mean of all."""
    if channel is None or worker_count(context.axis_name) == 1:
      return news, worker_mean(news, context.axis_name, context.share)
    counts = worker_counts(context.axis_name, context.share)

    def of_rows(counts, z):
      sent, agreed = channel.send(z, counts, context.axis_name)
      return jnp.where(counts.own > 0, sent, 0), agreed

    return on_rows(of_rows, channel.block, counts, news)

  return Sync(init, reduce, agrees=False)


def _halves(tree: Tree) -> tuple[list[jax.Array], list[jax.Array]]:
  """Returns the corrections and the sums of gradients of the field."""
  leaves = jax.tree.leaves(tree)
  return leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]
