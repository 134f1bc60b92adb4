"""How far the devices may be behind the loop that gives them their work."""

import collections
from collections.abc import Callable
import time
from typing import Any

import jax

MOST, LEAST = 8, 2
SECONDS = 2.0


class InFlight:
  """Results of programs that were dispatched: the newest few are not waited for.

  A few programs ahead keep the devices busy. More would hold the memory of their inputs, let a
  progress bar show what was only asked for, and where several processes have several CPU devices
  each stand still for ever: XLA lets a CPU device have 32 programs in flight, and one at that limit
  cannot start the program in whose collectives another device already waits for it.

  A run that is asked to stop finishes what is in flight. So that is about `SECONDS` of work: `MOST`
  programs, or fewer where each takes long, but `LEAST`, so that the next one is there when one ends.
  """

  def __init__(self, arrived: Callable[[], None] = lambda: None):
    """Calls `arrived` each time that a result has been waited for."""
    self._results = collections.deque()
    self._arrived = arrived
    # Of arrivals, after that of the first dispatch. Often several come at once, after a long wait.
    self._times = collections.deque(maxlen=MOST)
    self._ahead = LEAST

  def add(self, result: Any) -> Any:
    """Returns `result`, arrays that are not donated, after a wait for what is too far back."""
    if not self._times:
      self._times.append(time.monotonic())
    self._results.append(result)
    while len(self._results) > self._ahead:
      jax.block_until_ready(self._results.popleft())
      self._note_arrival(time.monotonic())
    return result

  def _note_arrival(self, now: float) -> None:
    seconds = (now - self._times[0]) / len(self._times)
    self._ahead = min(MOST, max(LEAST, int(SECONDS / max(seconds, SECONDS / MOST))))
    self._times.append(now)
    self._arrived()
