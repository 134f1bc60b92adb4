"""The stream of training batches: which worker reads which sequence at which step.

Everything is a pure function of (seed, step, worker), built as one lazy `grain.MapDataset` from
step to batch. First come the sequences' ids, shuffled, repeated, mixed and dealt to the workers;
the tokens are read last, and of this process' workers only. So any step can be read at random, no
state needs to be saved but the number of sequences consumed, and the number of processes, devices
or threads changes nothing.

Workers that read alike share one global order of sequences, dealt in blocks: at step t worker m
reads the positions first_sequence + (t * workers + m) * batch_size + i. Within an epoch of a source
no sequence comes twice. Where a source has `worker_weights`, each worker has a mixture and an order
of its own, and the sequences of each source are dealt once and for all, round robin, among the
workers that use it.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from desloc_jax.data import mixture
from desloc_jax.data.checks import check_at_least
from desloc_jax.data.mixture import SequenceId, SequenceIds, Sources
from desloc_jax.errors import UserError


class TrainingStream:
  """Endless batches for every worker, each epoch of a source in another order."""

  def __init__(
    self,
    sources: Sources,
    *,
    workers: int,
    batch_size: int,
    seed: int,
    local_workers: Sequence[int] | None = None,
    first_sequence: int = 0,
  ):
    """Plans the stream; nothing is read yet.

    Args:
      sources: specs, of which name and weights count, with their sequences. Weights hold to within
        a hundredth of the smallest.
      workers: number of workers W in all processes.
      batch_size: sequences that a worker reads in a step.
      seed: at least 0, of the order.
      local_workers: the workers whose batches are read here; all of them by default.
      first_sequence: sequences that all workers together consumed before step 0. Together with the
        seed it is the stream's whole state: a stream for another number of workers that starts at
        `position(t)` goes on in the global order. Where workers differ, each starts at its
        first_sequence // workers.

    Raises:
      UserError: an argument is out of range, the sources' weights are of no use (see
        `mixture.check_sources`), or a source has fewer sequences than workers of its own.
    """
    check_at_least(1, workers=workers, batch_size=batch_size)
    check_at_least(0, seed=seed, first_sequence=first_sequence)
    self._local_workers = tuple(range(workers) if local_workers is None else local_workers)
    if not self._local_workers or not set(self._local_workers) <= set(range(workers)):
      raise UserError(f'local_workers is {local_workers}, expected some of 0..{workers - 1}.')
    self._weights = mixture.integer_weights(mixture.check_sources(sources, workers))
    self._sources = sources
    self._packed = {spec.name: packed for spec, packed in sources}
    self._workers = workers
    self._batch_size = batch_size
    self._seed = seed
    self._first_sequence = first_sequence
    differ = any(spec.worker_weights for spec, _ in sources)
    self._ids = self._deal_own_orders() if differ else self._deal_shared_order()
    self._batches = self._ids.map(self._read)

  def batch(self, step: int) -> np.ndarray:
    """Returns the batch of `step`, int32 [local workers, batch_size, seq_len + 1]."""
    return self._batches[step]

  def iterator(self, start_step: int, prefetch: int = 2, threads: int = 1) -> Iterator[np.ndarray]:
    """Yields `batch` of start_step, start_step + 1, ... for ever.

    Args:
      start_step: of the first batch.
      prefetch: batches loaded ahead in the background; 0 loads each one when it is asked for.
      threads: that load them. The order does not depend on it.
    """
    check_at_least(0, start_step=start_step, prefetch=prefetch)
    check_at_least(1, threads=threads)
    options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=max(prefetch, threads) if prefetch else 0
    )
    return iter(self._batches[start_step:].to_iter_dataset(options))

  def sequence_ids(self, step: int) -> list[list[SequenceId]]:
    """Returns what `batch(step)` reads: for each local worker [batch_size] sequence ids."""
    return list(self._ids[step])

  def position(self, step: int) -> int:
    """Returns the number of sequences that all workers together consumed before `step`."""
    return self._first_sequence + step * self._workers * self._batch_size

  def epochs(self, step: int) -> dict[str, float]:
    """Returns source name -> epochs consumed before `step`, exact to a sequence or two a worker."""
    shares = self._weights / self._weights.sum(axis=0)
    drawn = shares.sum(axis=1) * self.position(step) / self._workers
    return {
      spec.name: float(count / len(packed))
      for (spec, packed), count in zip(self._sources, drawn, strict=True)
    }

  def _deal_shared_order(self) -> grain.MapDataset:
    """Returns step -> ids [local workers][batch_size], cut from one order for all workers."""
    size = self._batch_size
    orders = [
      SequenceIds(spec.name, len(packed)).shuffle(seed=self._derive_seed(source)).repeat()
      for source, (spec, packed) in enumerate(self._sources)
    ]
    order = mixture.mix(orders, self._weights[:, 0])[self._first_sequence :]
    blocks = order.batch(self._workers * size, drop_remainder=True, batch_fn=list)
    return blocks.map(lambda ids: [ids[m * size : (m + 1) * size] for m in self._local_workers])

  def _deal_own_orders(self) -> grain.MapDataset:
    """Returns step -> ids [local workers][batch_size], each worker's from its own order."""
    start = self._first_sequence // self._workers
    return grain.experimental.ZipMapDataset(
      [
        self._own_order(worker)[start:].batch(self._batch_size, drop_remainder=True, batch_fn=list)
        for worker in self._local_workers
      ]
    )

  def _own_order(self, worker: int) -> grain.MapDataset:
    """Returns the endless ids of one worker: its part of each source that it uses, mixed."""
    orders, weights = [], []
    for source in np.flatnonzero(self._weights[:, worker]):
      spec, packed = self._sources[source]
      users = np.flatnonzero(self._weights[source])
      if len(packed) < len(users):
        raise UserError(
          f'Source {spec.name!r} has {len(packed)} sequences, expected at least one for each of '
          f'the {len(users)} workers that use it.'
        )
      part = SequenceIds(spec.name, len(packed))[list(users).index(worker) :: len(users)]
      orders.append(part.shuffle(seed=self._derive_seed(source, worker)).repeat())
      weights.append(self._weights[source, worker])
    return mixture.mix(orders, weights)

  def _derive_seed(self, *path: int) -> int:
    """Returns a 32-bit seed for a part of the stream, independent of the other parts' seeds."""
    return int(np.random.SeedSequence(self._seed, spawn_key=path).generate_state(1)[0])

  def _read(self, ids: Sequence[Sequence[SequenceId]]) -> np.ndarray:
    return np.stack([[self._packed[i.source][i.sequence] for i in row] for row in ids])
