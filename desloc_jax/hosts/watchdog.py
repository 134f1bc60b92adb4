"""Ends a process that makes no progress, whatever it waits for, so that it can be started again."""

import collections
from collections.abc import Iterator
import contextlib
import faulthandler
import os
import pathlib
import statistics
import threading
import time

from absl import logging

from desloc_jax.files import unnamed_file
from desloc_jax.hosts import ending
from desloc_jax.hosts.board import Board

SLOWER_THAN_MEDIAN = 20  # Times the median step: then a step is stuck.
LONGER_THAN_STEP = 10  # Times that: what compiling, restoring, evaluating and saving may take.
_STEPS = 'steps'
_STUCK = 'stuck'
_TICK_S = 1.0
_OTHERS_S = 3.0  # In which the other processes notice, and write down where they are.
_TELL_S = 15.0  # Longest wait for the log and the workdir, which may be what is stuck.


class Watchdog:
  """Watches the results of steps arrive, from a thread of its own; used as a context manager.

  A step may take `timeout_s`, or 20 times the median of the steps before if that is more; what is not
  a step (all up to the first result, each batch of an evaluation, a save, the end) 10 times as long.
  After that the stacks of all threads go to stderr and to stuck-PROCESS.txt in the workdir, on all
  processes of the run, and each ends with exit code `ending.PEER_LOST`. A process that is not there
  for the run alone, such as a notebook's, is told where it is stuck and left to its user.

  Time in which the process itself does not run counts for nothing: a laptop asleep, SIGSTOP.
  """

  def __init__(self, timeout_s: float, workdir: pathlib.Path, board: Board):
    """Takes seconds (0: it does nothing), the folder of the run, and its board."""
    self._timeout_s, self._workdir, self._board = timeout_s, workdir, board
    self._phase = 'the start'
    self._beats = 0
    self._durations = collections.deque(maxlen=64)
    self._last_arrival: float | None = None
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self):
    if self._timeout_s:
      self._thread.start()
    return self

  def __exit__(self, *_):
    self._ended.set()
    if self._timeout_s:
      self._thread.join(timeout=2 * _TICK_S)

  def step_arrived(self) -> None:
    """Says that the result of a step has been waited for."""
    now = time.monotonic()
    if self._last_arrival is not None:
      self._durations.append(now - self._last_arrival)
    self._last_arrival, self._phase = now, _STEPS
    self.beat()

  def beat(self) -> None:
    """Says that there is progress."""
    self._beats += 1

  def enter(self, phase: str) -> None:
    """Gives what follows, up to the next step that arrives, the time of what is no step."""
    self._phase, self._last_arrival = phase, None
    self.beat()

  @contextlib.contextmanager
  def during(self, phase: str) -> Iterator[None]:
    """Gives what is no step the time that it may take."""
    before = self._phase
    self.enter(phase)
    yield
    self.enter(before)

  @property
  def limit_s(self) -> float:
    """Seconds without progress after which the process is stuck."""
    median = statistics.median(self._durations) if self._durations else 0.0
    limit = max(self._timeout_s, SLOWER_THAN_MEDIAN * median)
    return limit if self._phase == _STEPS else LONGER_THAN_STEP * limit

  def _watch(self) -> None:
    tick = min(_TICK_S, self._timeout_s / 10)
    silent, seen = 0.0, self._beats
    while not self._ended.wait(tick):
      silent = silent + tick if self._beats == seen else 0.0
      seen = self._beats
      if silent > self.limit_s:
        self._tell_and_end(
          f'error: stuck: no progress for {silent:.0f} s in {self._phase} (processes.stuck_timeout_s '
          f'is {self._timeout_s:g}, {LONGER_THAN_STEP} times that outside of steps)'
        )
        return
      if process := self._another_is_stuck():
        self._tell_and_end(f'error: process {process} is stuck, or waits for one that is')
        return

  def _another_is_stuck(self) -> str | None:
    with contextlib.suppress(Exception):  # Where process 0 is lost JAX ends this one.
      return self._board.read().get(_STUCK)

  def _tell_and_end(self, text: str) -> None:
    if not ending.may_be_ended():
      logging.warning('%s. Where each thread is:', text.removeprefix('error: '))
      os.write(2, _stacks())
      return
    teller = threading.Thread(target=self._tell, args=(text,), daemon=True)
    teller.start()
    teller.join(_TELL_S)
    os._exit(ending.PEER_LOST)

  def _tell(self, text: str) -> None:
    """Writes the stacks, tells the other processes, and ends this one; anything here may hang."""
    path = self._workdir / f'stuck-{self._board.index}.txt'
    text = f'{text}. The stacks of all threads are above and in {path}.'
    ending.set_last_words(ending.PEER_LOST, text)
    # Threads of their own: the workdir, process 0, or who reads stderr may be what is stuck.
    stacks = _stacks()
    post = (_STUCK, str(self._board.index))
    beside = [
      threading.Thread(target=_write, args=(path, stacks), daemon=True),
      threading.Thread(target=self._board.post, args=post, daemon=True),
    ]
    for thread in beside:
      thread.start()
    with contextlib.suppress(OSError):
      os.write(2, b'\n' + stacks)
    for thread in beside:
      thread.join(_OTHERS_S)
    time.sleep(_OTHERS_S if self._board.count > 1 else 0)
    ending.leave(ending.PEER_LOST, text)


def _stacks() -> bytes:
  """Returns where all threads are; by a local file, as faulthandler lets none run while it writes."""
  with unnamed_file() as file:
    faulthandler.dump_traceback(file)
    file.seek(0)
    return file.read()


def _write(path: pathlib.Path, content: bytes) -> None:
  with contextlib.suppress(OSError):
    path.write_bytes(content)
