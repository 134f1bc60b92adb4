"""Mixing the sequences of several sources by weight."""

from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from desloc_jax.data.sequences import PackedSequences
from desloc_jax.data.sources import SourceSpec
from desloc_jax.errors import UserError

Sources = Sequence[tuple[SourceSpec, PackedSequences]]

# Then the square of the sum of the integer weights fits into int64, as `draws_before` needs.
_SMALLEST_SHARE = 1e-7
_LARGEST_WEIGHT = 1e30  # Far from where products and sums of weights overflow.


class SequenceId(NamedTuple):
  """One reading of one sequence: in which epoch of which source, and its index there."""

  source: str
  epoch: int
  sequence: int


class SequenceIds(grain.MapDataset[SequenceId]):
  """The ids of all sequences of one source in order; an index past the end is of a later epoch."""

  def __init__(self, source: str, length: int):
    super().__init__()
    self._source = source
    self._length = length

  def __len__(self) -> int:
    return self._length

  def __str__(self) -> str:
    return f'SequenceIds({self._source}, {self._length})'

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    return SequenceId(self._source, *divmod(index, self._length))


def mix(datasets: Sequence[grain.MapDataset], weights: Sequence[int]) -> grain.MapDataset:
  """Interleaves the datasets of positive `integer_weights` in proportion to them."""
  used = [(dataset, weight) for dataset, weight in zip(datasets, weights, strict=True) if weight]
  return grain.MapDataset.mix(*zip(*used, strict=True))


def draws_before(index: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns how many of the first `index` elements of a `mix` are of each source.

  Args:
    index: at least 0, int64 [...].
    weights: of the sources, `integer_weights` [sources, ...]; the rest must broadcast with index.

  Returns:
    int64 [sources, ...].
  """
  period = weights.sum(axis=0)
  periods, left = np.divmod(index, period)
  counts, remaining = [], period
  # As grain does in `mix`: each source takes its share of what the sources before it have left.
  for weight in weights:
    rest = left * (remaining - weight) // np.maximum(remaining, 1)
    counts.append(periods * weight + left - rest)
    left, remaining = rest, remaining - weight
  return np.stack(counts)


def integer_weights(weights: np.ndarray) -> np.ndarray:
  """Returns weights [sources, ...] as integers int64, the smallest positive one of a mixture 100.

  grain rounds just so inside `MapDataset.mix`; rounding before it makes the shares known.

  Raises:
    UserError: a positive share of a mixture is below a ten-millionth.
  """
  smallest = np.min(weights, axis=0, where=weights > 0, initial=np.inf)
  share = np.min(smallest / weights.sum(axis=0))
  if share < _SMALLEST_SHARE:
    raise UserError(
      f'The smallest weight of a source is {share:.3g} of the sum of all, expected 0 or at least '
      f'{_SMALLEST_SHARE:g} of it.'
    )
  return np.rint(weights / smallest * 100).astype(np.int64)


def check_sources(sources: Sources, workers: int) -> np.ndarray:
  """Returns each source's weight for each worker, float64 [sources, workers].

  Raises:
    UserError: there is no source, two have one name or differ in seq_len, or a weight is negative,
      not finite, of the wrong number, or zero wherever a worker could read.
  """
  if not sources:
    raise UserError('There is no source, expected at least one.')
  names = [spec.name for spec, _ in sources]
  for name in names:
    if names.count(name) > 1:
      raise UserError(f'Source name {name!r} is used twice, expected different names.')
  lengths = {spec.name: packed.seq_len for spec, packed in sources}
  if len(set(lengths.values())) > 1:
    raise UserError(f'The sources differ in seq_len, expected one: {lengths}.')
  weights = np.array([_worker_weights(spec, workers) for spec, _ in sources], np.float64)
  for worker in np.flatnonzero(weights.sum(axis=0) == 0):
    raise UserError(
      f'Worker {worker} has weight 0 for every source ({", ".join(names)}), expected a positive '
      'weight and worker_weights of one.'
    )
  return weights


def _worker_weights(spec: SourceSpec, workers: int) -> list[float]:
  """Returns the source's weight for each worker, checked."""
  for field, values in (('weight', (spec.weight,)), ('worker_weights', spec.worker_weights)):
    for value in values:
      if not 0 <= value <= _LARGEST_WEIGHT:
        raise UserError(
          f'Source {spec.name!r}: {field} has the value {value!r}, expected a number from 0 to '
          f'{_LARGEST_WEIGHT:g}.'
        )
  if spec.worker_weights and len(spec.worker_weights) != workers:
    raise UserError(
      f'Source {spec.name!r}: worker_weights has {len(spec.worker_weights)} values, expected '
      f'one for each of the {workers} workers.'
    )
  return [spec.weight * factor for factor in spec.worker_weights or (1.0,) * workers]
