"""Who has seen more counts more."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.averaging import Share
from desloc_jax.optimizer.syncs.sync import Memory, Sync


def by_tokens(sync: Sync) -> Sync:
  r"""Weighs each worker by what it has worked since the quantity was last averaged.

  .. math::
    w_m \leftarrow \sum_{t} w_{m,t}

  over the steps since, with the weights that `update` got in them, as shares of the largest: 1 for a
  worker that was there, 0 for one that was away. So a worker that came back half way counts half.
  Where steps differ in tokens, give their numbers as `weights`.

  Args:
    sync: how who counts is averaged.

  Returns:
    A `Sync` that remembers one number a worker beside what `sync` does, and sends it. Without
    weights and `active` it is `sync`.

  References:
    Decoupled DiLoCo (arXiv:2604.21428), whose learners have clocks of their own
  """

  def init(tree):
    own, shared = sync.init(tree)
    return Memory({'seen': jnp.zeros([], jnp.float32), 'sync': own}, shared)

  def watch(memory, share):
    seen = memory.own['seen'] + (1 if share is None else share.weight)
    return memory._replace(own=memory.own | {'seen': seen})

  def reduce(local, reference, memory, context):
    if context.share is not None:
      weight = jnp.where(context.share.weight > 0, memory.own['seen'], 0)
      total = jax.lax.psum(weight, context.axis_name)
      context = context._replace(share=Share(weight, total))
    inner = Memory(memory.own['sync'], memory.shared)
    agreed, inner = sync.reduce(local, reference, inner, context)
    own = {'seen': jnp.zeros_like(memory.own['seen']), 'sync': inner.own}
    return agreed, Memory(own, inner.shared)

  return sync._replace(init=init, reduce=reduce, watch=watch)
