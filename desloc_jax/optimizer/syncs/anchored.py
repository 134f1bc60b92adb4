"""A reference for quantities that have none."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.syncs.sync import Memory, Sync


def anchored(sync: Sync) -> Sync:
  r"""Gives a moment what the parameters have in the consensus: the value agreed on last.

  .. math::
    D_m = R - s_m, \quad R \leftarrow R - \mathrm{sync}(D_1, \ldots, D_W), \quad s_m \leftarrow R

  For a sync that sends few of the coordinates: the others stay as they were at the last sync. Not
  for second moments, which it could make negative.

  Args:
    sync: what sends the differences.

  Returns:
    A `Sync` that remembers R beside what `sync` remembers.
  """

  def init(tree):
    own, shared = sync.init(tree)
    return Memory(own, {'anchor': jax.tree.map(jnp.copy, tree), 'sync': shared})

  def reduce(local, reference, memory, context):
    del reference
    anchor, shared = memory.shared['anchor'], memory.shared['sync']
    agreed, inner = sync.reduce(local, anchor, Memory(memory.own, shared), context)
    return agreed, Memory(inner.own, {'anchor': agreed, 'sync': inner.shared})

  return Sync(init, reduce)
