"""The stream of training batches: which worker reads which sequence at which step.

Each source has one endless order of its sequences: every epoch a permutation of all of them, each
epoch another one. Each worker has a mixture that says of which source its n-th draw is. The draws
of all workers, ordered by (step, worker, place in the batch), take a source's order one after
another. So within an epoch of a source no sequence comes twice and none is left out, whatever the
mixtures are, and the whole state of a stream is how many sequences of each source are consumed. It
knows nothing of workers: a `StreamStart` lets any other number of them go on.

How many draws of a source come before a step is known in closed form (`mixture.draws_before`), so
everything is a pure function of (start, seed, step, worker): any step can be read at random, and
the number of processes, devices or threads changes nothing. One lazy `grain.MapDataset` goes from
step to ids to tokens; the ids of all workers are dealt in every process, the tokens are read of its
own workers only.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import sys

import grain
import numpy as np

from desloc_jax.data import mixture
from desloc_jax.data.mixture import SequenceId, SequenceIds, Sources
from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.valid import check_at_least


@dataclasses.dataclass(frozen=True)
class StreamStart:
  """Where a stream begins; `dataclasses.asdict` makes it JSON, `StreamStart(**json)` reads it.

  Attributes:
    step: its first step.
    consumed: source name -> sequences that were consumed before that step; 0 for a missing source.
    orders: source name -> which of the seed's orders it is read in; its place among the sources
      where it is missing. Sources that come or go then change nobody else's order.
  """

  step: int = 0
  consumed: Mapping[str, int] = dataclasses.field(default_factory=dict)
  orders: Mapping[str, int] = dataclasses.field(default_factory=dict)


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
    start: StreamStart = StreamStart(),
  ):
    """Plans the stream; nothing is read yet.

    Args:
      sources: specs, of which name and weights count, with their sequences. Weights hold to within
        a hundredth of the smallest.
      workers: number of workers W in all processes.
      batch_size: sequences that a worker reads in a step.
      seed: at least 0, of the order.
      local_workers: the workers whose batches are read here; all of them by default.
      start: the first step, and what was consumed before it. With the same seed and the same
        sources in the same order, a stream that starts at StreamStart(t, earlier.consumed(t)) goes
        on where `earlier` stopped, with any workers, batch_size and weights. Mixtures begin anew
        there, so a stream that shall be the very same keeps the start it had.

    Raises:
      UserError: an argument is out of range, `start` names an unknown source, or the sources'
        weights are of no use (see `mixture.check_sources` and `mixture.integer_weights`).
    """
    check_at_least(1, workers=workers, batch_size=batch_size)
    check_at_least(0, seed=seed)
    self._local_workers = list(range(workers) if local_workers is None else local_workers)
    if not self._local_workers or not set(self._local_workers) <= set(range(workers)):
      raise UserError(f'local_workers is {local_workers}, expected some of 0..{workers - 1}.')
    self._weights = mixture.integer_weights(mixture.check_sources(sources, workers))
    self._lengths = {spec.name: len(packed) for spec, packed in sources}
    _check_start(start, self._lengths)
    self._packed = {spec.name: packed for spec, packed in sources}
    self._batch_size = batch_size
    self._first_step = start.step
    self._consumed = np.array([start.consumed.get(name, 0) for name in self._lengths], np.int64)
    # Workers of one mixture draw neighbouring parts of its pattern, so that all together draw it
    # evenly; in step with one another, batches of few sequences would all be of the same source.
    self._first_draws = np.arange(workers) * batch_size
    self._orders = [
      SequenceIds(name, length)
      .shuffle(seed=_derive_seed(seed, start.orders.get(name, place)))
      .repeat()
      for place, (name, length) in enumerate(self._lengths.items())
    ]
    self._ids = grain.MapDataset.range(sys.maxsize).map(self._deal)
    self._batches = self._ids.map(self._read)

  def batch(self, step: int) -> np.ndarray:
    """Returns the batch of `step`, int32 [local workers, batch_size, seq_len + 1].

    Raises:
      UserError: `step` is before the start.
    """
    check_at_least(self._first_step, step=step)
    return self._batches[step]

  def iterator(self, start_step: int, prefetch: int = 2, threads: int = 1) -> Iterator[np.ndarray]:
    """Yields `batch` of start_step, start_step + 1, ... for ever.

    Args:
      start_step: of the first batch.
      prefetch: batches loaded ahead in the background; 0 loads each one when it is asked for.
      threads: that load them. The order does not depend on it.

    Raises:
      UserError: start_step is before the start, or another argument is out of range.
    """
    check_at_least(self._first_step, start_step=start_step)
    check_at_least(0, prefetch=prefetch)
    check_at_least(1, threads=threads)
    options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=max(prefetch, threads) if prefetch else 0
    )
    return iter(self._batches[start_step:].to_iter_dataset(options))

  def sequence_ids(self, step: int) -> list[list[SequenceId]]:
    """Returns what `batch(step)` reads: for each local worker [batch_size] sequence ids.

    Raises:
      UserError: `step` is before the start.
    """
    check_at_least(self._first_step, step=step)
    return self._ids[step]

  def consumed(self, step: int) -> dict[str, int]:
    """Returns source name -> sequences that all workers together consumed before `step`.

    Raises:
      UserError: `step` is before the start.
    """
    check_at_least(self._first_step, step=step)
    return dict(zip(self._lengths, self._count_consumed(step).tolist(), strict=True))

  def epochs(self, step: int) -> dict[str, float]:
    """Returns source name -> epochs consumed before `step`: `consumed` by the source's length.

    Raises:
      UserError: `step` is before the start.
    """
    return {name: count / self._lengths[name] for name, count in self.consumed(step).items()}

  def _count_consumed(self, step: int) -> np.ndarray:
    """Returns `consumed` as int64 [sources]."""
    first, here = (
      mixture.draws_before(draws, self._weights)
      for draws in (self._first_draws, self._step_draws(step))
    )
    return self._consumed + (here - first).sum(axis=1)

  def _step_draws(self, step: int) -> np.ndarray:
    """Returns the place of each worker's first draw of `step` in its mixture, [workers]."""
    return self._first_draws + (step - self._first_step) * self._batch_size

  def _deal(self, step: int) -> list[list[SequenceId]]:
    """Returns `sequence_ids`."""
    draws = self._step_draws(step)[:, None] + np.arange(self._batch_size + 1)
    # Is the draw of the source? 0 or 1, [sources, workers, batch_size], one 1 for each draw.
    chosen = np.diff(mixture.draws_before(draws, self._weights[:, :, None]))
    count = np.cumsum(chosen.reshape(len(chosen), -1), axis=1).reshape(chosen.shape)
    before = self._count_consumed(step)[:, None, None] + count - chosen
    source = chosen.argmax(axis=0)
    position = np.take_along_axis(before, source[None], axis=0)[0]
    return [
      [self._orders[s][p] for s, p in zip(source[w].tolist(), position[w].tolist(), strict=True)]
      for w in self._local_workers
    ]

  def _read(self, ids: Sequence[Sequence[SequenceId]]) -> np.ndarray:
    return np.stack([[self._packed[i.source][i.sequence] for i in row] for row in ids])


def _check_start(start: StreamStart, names: Mapping[str, int]) -> None:
  check_at_least(0, **{'start.step': start.step})
  for field in ('consumed', 'orders'):
    for name, count in getattr(start, field).items():
      if name not in names:
        raise unknown_choice(f'start.{field}: source', name, names)
      check_at_least(0, **{f'start.{field}[{name!r}]': count})


def _derive_seed(seed: int, source: int) -> int:
  """Returns the 32-bit seed of a source's order, independent of the other sources' seeds."""
  return int(np.random.SeedSequence(seed, spawn_key=(source,)).generate_state(1)[0])
