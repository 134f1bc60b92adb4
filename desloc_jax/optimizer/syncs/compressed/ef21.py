"""Compressed changes of each worker's own estimate: EF21, and EControl, which adds the error."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.averaging import worker_count, worker_mean
from desloc_jax.optimizer.syncs.compressed.channels import Channel, worker_counts
from desloc_jax.optimizer.syncs.compressed.vectors import on_rows, wide
from desloc_jax.optimizer.syncs.sync import difference, Memory, moved, Sync


def ef21(channel: Channel) -> Sync:
  r"""Sends how a worker's difference changed, and moves by the mean of what has been made known.

  .. math::
    s_m = C(D_m - h_m), \quad h_m \leftarrow h_m + s_m, \quad X \leftarrow X - \frac1W \sum_m h_m

  Args:
    channel: what sends, `in_slices(uniform(4))` or `to_everybody(largest())`, say.

  Returns:
    A `Sync` that remembers two float32 copies of the quantity: each worker's h, and their mean.

  References:
    Richtárik et al., `EF21 <https://arxiv.org/abs/2106.05203>`_, 2021
  """
  return econtrol(channel, eta=0.0)


def econtrol(channel: Channel, eta: float = 0.1) -> Sync:
  r"""EF21 with the accumulated error, weighed by `eta`, in what is sent.

  .. math::
    s_m = C(\eta e_m + D_m - h_m), \quad e_m \leftarrow e_m + D_m - h_m - s_m, \quad
    h_m \leftarrow h_m + s_m, \quad X \leftarrow X - \frac1W \sum_m h_m

  The mean of h is kept as a sum of the means of s. So where weights change, what a worker sent
  counts by its weight at that time.

  Args:
    channel: what sends.
    eta: weight of the error, >= 0; 0 is EF21, without e.

  Returns:
    A `Sync` that remembers three float32 copies of the quantity.

  Raises:
    ValueError: `eta` is negative, or the channel takes numbers >= 0 only.

  References:
    Gao et al., `EControl <https://arxiv.org/abs/2311.05645>`_, 2023
  """
  if not eta >= 0:
    raise ValueError(f'eta must be >= 0, got {eta!r}.')
  if channel.positive:
    raise ValueError('changes have signs: logarithms cannot encode them.')

  def init(tree):
    own = {'h': wide(tree)} | ({'e': wide(tree)} if eta else {})
    return Memory(own, shared=wide(tree))

  def reduce(local, reference, memory, context):
    if worker_count(context.axis_name) == 1:
      return worker_mean(local, context.axis_name, context.share), memory  # Of itself.
    counts = worker_counts(context.axis_name, context.share)

    def of_rows(counts, news, h, e):
      change = news - h
      z = jnp.where(counts.own > 0, eta * e + change, 0)
      sent, agreed = channel.send(z, counts, context.axis_name)
      keep = lambda new, old: jnp.where(counts.own > 0, new, old)
      return keep(h + sent, h), keep(e + change - sent, e), agreed

    h = memory.own['h']
    e = memory.own['e'] if eta else wide(local)
    news = difference(local, reference)
    h, e, agreed = on_rows(of_rows, channel.block, counts, news, h, e)
    mean = jax.tree.map(jnp.add, memory.shared, agreed)
    own = {'h': h} | ({'e': e} if eta else {})
    return moved(local, reference, mean), Memory(own, shared=mean)

  return Sync(init, reduce)
