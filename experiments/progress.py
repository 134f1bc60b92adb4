"""How far an experiment is, and the time that it still takes."""

from collections.abc import Callable, Sequence
import datetime
import pathlib
import time

from experiments.runs import is_done, Run


class Progress:
  """Tells of each run as it begins, with the time left.

  The time is in proportion to the arithmetic of the runs that are left, at the speed at which all
  processes that share the folder have done others since this one began.
  """

  def __init__(
    self, runs: Sequence[Run], folder: pathlib.Path, tell: Callable[[str], None] = print
  ):
    """Takes all runs, each once, the folder that they are in, and where lines go."""
    self._left = [run for run in runs if not is_done(run, folder)]
    self._total = len(runs)
    self._folder = folder
    self._tell = tell
    self._begin = time.monotonic()
    self._done = 0.0  # Arithmetic since then.

  def begin(self, run: Run) -> None:
    """Tells that a run begins."""
    left = [run for run in self._left if not is_done(run, self._folder)]
    self._done += _arithmetic(self._left) - _arithmetic(left)
    self._left = left
    number = self._total - len(left) + 1
    self._tell(f'[{number} of {self._total}{self._time_left()}] {run.name}')

  def _time_left(self) -> str:
    if not self._done:
      return ''
    seconds = (time.monotonic() - self._begin) / self._done * _arithmetic(self._left)
    return f', {datetime.timedelta(seconds=round(seconds))} left'


def _arithmetic(runs: Sequence[Run]) -> float:
  return sum(run.arithmetic for run in runs)
