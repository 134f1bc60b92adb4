"""The plain mean, DES-LOC's own sync."""

from desloc_jax.optimizer.averaging import worker_mean
from desloc_jax.optimizer.syncs.sync import no_memory, Sync


def mean() -> Sync:
  r"""Averages by one all-reduce, in the arrays' own dtype.

  .. math::
    X \leftarrow \frac1W \sum_m x_m

  Returns:
    A `Sync` without memory.

  References:
    Iacob et al., `DES-LOC <https://arxiv.org/abs/2505.22549>`_, 2025
  """

  def reduce(local, reference, memory, context):
    del reference
    return worker_mean(local, context.axis_name, context.share), memory

  return Sync(no_memory, reduce)
