"""Reads that run side by side, and are taken in the order in which they were asked for."""

import collections
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorstore as ts


class _Read(NamedTuple):
  size: int  # Bytes.
  start: Callable[[], ts.Future]
  take: Callable[[np.ndarray], None]


class ReadAhead:
  """Keeps reads of up to so many bytes in flight, and at least one.

  Attributes:
    added: reads that were asked for.
    taken: those that are done.
    bytes_taken: of their values.
  """

  def __init__(self, limit: int):
    """Takes the bytes that may be in flight."""
    self.added = self.taken = self.bytes_taken = 0
    self._limit = limit
    self._in_flight = 0
    self._waiting: collections.deque[_Read] = collections.deque()
    self._running: collections.deque[tuple[_Read, ts.Future]] = collections.deque()

  def add(
    self, size: int, start: Callable[[], ts.Future], take: Callable[[np.ndarray], None]
  ) -> None:
    """Asks for a read of `size` bytes that `start` begins; `take` gets its values later."""
    self._waiting.append(_Read(size, start, take))
    self.added += 1
    self._fill()

  def run_until(self, number: int) -> None:
    """Returns when the first `number` reads are taken."""
    while self.taken < number:
      read, future = self._running.popleft()
      read.take(future.result())
      del future  # Its values may be all that memory holds.
      self._in_flight -= read.size
      self.taken += 1
      self.bytes_taken += read.size
      self._fill()

  def _fill(self) -> None:
    while self._waiting:
      size = self._waiting[0].size
      if self._running and self._in_flight + size > self._limit:
        return
      read = self._waiting.popleft()
      self._in_flight += size
      self._running.append((read, read.start()))
