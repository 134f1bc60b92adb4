"""How long steps take, seen by a thread that waits for their results, so that the loop need not."""

import queue
import threading
import time
from typing import Any

import jax


class Arrivals:
  """Notes when the results of steps come, in the order in which they were dispatched."""

  def __init__(self):
    self._queue: queue.SimpleQueue = queue.SimpleQueue()
    self._times: list[float] = []
    self._thread = threading.Thread(target=self._wait, daemon=True)
    self._thread.start()

  def add(self, result: Any) -> None:
    """Takes a result of the next step, arrays that are not donated."""
    self._queue.put(result)

  def take(self) -> list[float]:
    """Returns the seconds at which those since the last call came, after a wait for all of them."""
    all_came = threading.Event()
    self._queue.put(all_came)
    all_came.wait()
    times, self._times = self._times, []
    return times

  def close(self) -> None:
    """Ends the thread, which may wait for a step that never comes."""
    self._queue.put(None)
    self._thread.join(timeout=1)

  def _wait(self) -> None:
    while (result := self._queue.get()) is not None:
      if isinstance(result, threading.Event):
        result.set()
        continue
      try:
        jax.block_until_ready(result)
      except Exception:  # The loop meets it too, and tells of it.
        pass
      self._times.append(time.perf_counter())
