"""The parts of an array that this process' devices hold, put together from chunks of any shape."""

from collections.abc import Sequence

import jax
import numpy as np

Box = tuple[tuple[int, int], ...]  # (start, stop) on each axis.


def overlap(a: Box, b: Box) -> Box | None:
  """Returns what two boxes share, None if that is nothing."""
  shared = tuple(
    (max(start, other), min(stop, end))
    for (start, stop), (other, end) in zip(a, b, strict=True)
  )  # fmt: skip
  return shared if all(start < stop for start, stop in shared) else None


def hull(boxes: Sequence[Box]) -> Box:
  """Returns the smallest box that has all of these in it."""
  return tuple(
    (min(start for start, _ in axis), max(stop for _, stop in axis))
    for axis in zip(*boxes, strict=True)
  )


class Parts:
  """Parts of one array; devices that hold the same part share it."""

  def __init__(self, like: jax.ShapeDtypeStruct):
    """Takes shape, dtype and sharding of the array to be made."""
    self._like = like
    indices = like.sharding.addressable_devices_indices_map(like.shape).values()
    self.bounds: list[Box] = list(dict.fromkeys(map(self._box, indices)))
    self._values: dict[Box, np.ndarray] = {}

  def take(self, box: Box, chunk: np.ndarray) -> None:
    """Takes the values of `box`, whole parts or a piece of each."""
    for bounds in self.bounds:
      if (shared := overlap(box, bounds)) is None:
        continue
      piece = chunk[_within(shared, box)]
      if shared == bounds and len(self.bounds) == 1:  # Nothing to be put together.
        self._values[bounds] = np.asarray(piece, self._like.dtype)
      else:
        self._part(bounds)[_within(shared, bounds)] = piece

  def array(self) -> jax.Array:
    """Returns the array, once all chunks were taken."""
    values = {bounds: self._finished(self._part(bounds)) for bounds in self.bounds}
    self._values = {}
    return jax.make_array_from_callback(
      self._like.shape, self._like.sharding, lambda index: values[self._box(index)]
    )

  def _part(self, bounds: Box) -> np.ndarray:
    if bounds not in self._values:  # Only now: many arrays may be waiting.
      self._values[bounds] = self._new(tuple(stop - start for start, stop in bounds))
    return self._values[bounds]

  def _new(self, shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, self._like.dtype)

  def _finished(self, part: np.ndarray) -> np.ndarray:
    return part

  def _box(self, index: tuple[slice, ...]) -> Box:
    return tuple(s.indices(size)[:2] for s, size in zip(index, self._like.shape, strict=True))


class PartSums(Parts):
  """Parts of the mean of several arrays, summed in at least float32 in the order they come."""

  def __init__(self, like: jax.ShapeDtypeStruct, count: int):
    super().__init__(like)
    self._count = count

  def take(self, box: Box, chunk: np.ndarray) -> None:
    for bounds in self.bounds:
      if (shared := overlap(box, bounds)) is not None:
        part = self._part(bounds)[_within(shared, bounds)]
        np.add(part, chunk[_within(shared, box)], out=part, dtype=part.dtype, casting='unsafe')

  def _new(self, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.promote_types(self._like.dtype, np.float32))

  def _finished(self, part: np.ndarray) -> np.ndarray:
    return np.asarray(part / self._count, self._like.dtype)


def _within(box: Box, outer: Box) -> tuple[slice, ...]:
  return tuple(
    slice(start - first, stop - first) for (start, stop), (first, _) in zip(box, outer, strict=True)
  ) or (...,)
