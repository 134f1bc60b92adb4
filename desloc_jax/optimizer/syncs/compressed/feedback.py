"""Error feedback: what an encoding left out is sent the next time."""

import jax.numpy as jnp

from desloc_jax.optimizer.averaging import worker_count, worker_mean
from desloc_jax.optimizer.syncs.compressed.channels import Channel, worker_counts
from desloc_jax.optimizer.syncs.compressed.vectors import on_rows, wide
from desloc_jax.optimizer.syncs.sync import difference, Memory, moved, Sync


def with_feedback(channel: Channel, decay: float, needs_reference: bool = False) -> Sync:
  r"""Sends differences from the reference through a channel, and keeps what did not arrive.

  .. math::
    z_m = D_m + e_m, \quad s_m, \bar z = \mathrm{channel}(z_m), \quad
    e_m \leftarrow \beta (z_m - s_m), \quad X \leftarrow X - \bar z

  Args:
    channel: what sends.
    decay: of the memory, beta in [0, 1]; 0: no memory.
    needs_reference: whether to refuse a quantity without one.

  Raises:
    ValueError: `decay` is out of range; at a sync, if a reference is missing.
  """
  if not 0 <= decay <= 1:
    raise ValueError(f'the decay of a memory must be in [0, 1], got {decay!r}.')

  def init(tree):
    return Memory(own=wide(tree)) if decay else Memory()

  def reduce(local, reference, memory, context):
    if needs_reference and reference is None:
      raise ValueError('this sync sends differences from a reference: put it inside anchored().')
    if worker_count(context.axis_name) == 1:
      return worker_mean(local, context.axis_name, context.share), memory  # Of itself.
    counts = worker_counts(context.axis_name, context.share)

    def of_rows(counts, news, error):
      z = jnp.where(counts.own > 0, news + error, 0)
      if channel.positive:  # What was sent in excess is taken back, but never all there is.
        z = jnp.maximum(z, jnp.where(counts.own > 0, news / 2, 0))
      sent, agreed = channel.send(z, counts, context.axis_name)
      return jnp.where(counts.own > 0, decay * (z - sent), error), agreed

    news = difference(local, reference)
    kept = memory.own if decay else wide(local)
    error, agreed = on_rows(of_rows, channel.block, counts, news, kept)
    return moved(local, reference, agreed), Memory(own=error) if decay else memory

  return Sync(init, reduce)
