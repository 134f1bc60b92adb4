"""Batches for validation: always the same sequences in the same order."""

from collections.abc import Sequence

import grain
import numpy as np

from desloc_jax.data import mixture
from desloc_jax.data.checks import check_at_least
from desloc_jax.data.mixture import SequenceId, SequenceIds, Sources


def validation_batches(
  sources: Sources, workers: int, batch_size: int, limit: int | None = None
) -> grain.IterDataset[tuple[np.ndarray, np.ndarray]]:
  """Returns the validation batches, to be iterated over as often as needed.

  The sequences are not shuffled and none comes twice. Several sources are mixed in proportion to
  their weights, averaged over the workers, until one of them is used up.

  Args:
    sources: specs, of which name and weights count, with their validation sequences.
    workers: number of workers W that share the work.
    batch_size: sequences in a worker's batch.
    limit: at most so many sequences, spread evenly over the sources; None takes all.

  Returns:
    An iterable of (tokens, mask): int32 [workers, batch_size, seq_len + 1] and float32 [workers,
    batch_size], which is 1 for a sequence and 0 for the padding that fills the last batch.

  Raises:
    UserError: a number is below 1, or the weights are of no use.
  """
  check_at_least(1, workers=workers, batch_size=batch_size)
  if limit is not None:
    check_at_least(1, limit=limit)
  weights = mixture.check_sources(sources, workers).mean(axis=1)
  ids = _choose(sources, mixture.integer_weights(weights), limit)
  packed = {spec.name: sequences for spec, sequences in sources}
  shape = (workers, batch_size, sources[0][1].seq_len + 1)

  def read(chosen: Sequence[SequenceId]) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.zeros((workers * batch_size, shape[-1]), np.int32)
    tokens[: len(chosen)] = [packed[i.source][i.sequence] for i in chosen]
    mask = np.arange(workers * batch_size) < len(chosen)
    return tokens.reshape(shape), mask.reshape(shape[:2]).astype(np.float32)

  batches = ids.batch(workers * batch_size, batch_fn=list).map(read)
  return batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def _choose(sources: Sources, weights: np.ndarray, limit: int | None) -> grain.MapDataset:
  """Returns the ids of the sequences to validate on."""
  ids = [SequenceIds(spec.name, len(packed)) for spec, packed in sources]
  everything = mixture.mix(ids, weights)
  if limit is None or limit >= len(everything):
    return everything
  # The first sequences would be those of the first documents only: a biased sample.
  stride = len(everything) // limit
  return mixture.mix([each[::stride] for each in ids], weights)[:limit]
