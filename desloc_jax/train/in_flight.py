"""How far the devices may be behind the loop that gives them their work."""

import collections
from typing import Any

import jax

AHEAD = 8


class InFlight:
  """Results of programs that were dispatched: the newest `AHEAD` at most are not waited for.

  A few programs ahead keep the devices busy. More would hold the memory of their inputs, let a
  progress bar show what was only asked for, and where several processes have several CPU devices
  each stand still for ever: XLA lets a CPU device have 32 programs in flight, and one at that limit
  cannot start the program in whose collectives another device already waits for it.
  """

  def __init__(self):
    self._results = collections.deque()

  def add(self, result: Any) -> Any:
    """Returns `result`, arrays that are not donated, after a wait for what is too far back."""
    self._results.append(result)
    if len(self._results) > AHEAD:
      jax.block_until_ready(self._results.popleft())
    return result
