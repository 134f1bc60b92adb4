"""Nearest-neighbour mixing in front of another sync."""

import jax

from desloc_jax.optimizer.averaging import Share, worker_count
from desloc_jax.optimizer.syncs.byzantine import robust
from desloc_jax.optimizer.syncs.compressed.channels import exchanged
from desloc_jax.optimizer.syncs.compressed.vectors import over_devices
from desloc_jax.optimizer.syncs.sync import difference, moved, Sync


def of_neighbours(sync: Sync, byzantine: int) -> Sync:
  r"""Replaces what each worker sends by the mean of its W - f nearest, itself included.

  .. math::
    D_m \leftarrow \frac1{W - f} \sum_{j \in N_m} D_j

  For syncs that weigh whole workers, as `edit` does: the rules of `robust` take their neighbours
  themselves, at no cost. Here the mixed differences go back to their workers, for the bytes of a ring
  all-reduce beside those of `sync`. Who sends what is not finite does not count in `sync` either.

  Args:
    sync: what averages the mixed differences.
    byzantine: how many workers may lie, f; less than half of them. 0: nothing is mixed.

  Returns:
    A `Sync` with the memory of `sync`.

  Raises:
    ValueError: `byzantine` is negative; at a sync, if it is half of the workers or more.

  References:
    Allouah et al., `Fixing by Mixing <https://arxiv.org/abs/2302.01772>`_, 2023
  """
  if byzantine < 0:
    raise ValueError(f'byzantine is {byzantine}; expected a number of workers >= 0.')

  def reduce(local, reference, memory, context):
    axis_name, workers = context.axis_name, worker_count(context.axis_name)
    robust.check_byzantine(byzantine, workers)
    slices, join = robust.spread(difference(local, reference), axis_name)
    if workers == 1 or not slices:
      return sync.reduce(local, reference, memory, context)
    senders = robust.find_senders(context, byzantine)
    senders, squares = robust.compare(slices, senders, byzantine, axis_name)

    def mix(known, vectors):
      senders, mixing = known
      rows = robust.mixed(robust.by_worker(vectors, workers), mixing, senders)
      return robust.flat(exchanged(rows, axis_name))

    known = senders, robust.nearest(squares, senders)
    sent = moved(local, reference, join([over_devices(mix)(known, s) for s in slices]))
    share = Share(senders.weights[jax.lax.axis_index(axis_name)], senders.weights.sum())
    return sync.reduce(sent, reference, memory, context._replace(share=share))

  return sync._replace(reduce=reduce) if byzantine else sync
