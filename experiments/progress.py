"""How far an experiment is, and the time that it still takes."""

from collections.abc import Callable, Mapping
import datetime


class Progress:
  """Tells of each run as it begins, with the time left.

  The time is in proportion to the arithmetic of the runs that are left, at the speed of those that
  this process has trained: where several processes share the work, it ends sooner.
  """

  def __init__(self, work: Mapping[str, float], tell: Callable[[str], None] = print):
    """Takes the arithmetic of each run by its key, in any unit, and where lines go."""
    self._left = dict(work)
    self._total = len(work)
    self._tell = tell
    self._done, self._seconds = 0.0, 0.0  # Of the runs trained here.

  def begin(self, key: str, name: str) -> None:
    """Tells that a run begins."""
    del key
    number = self._total - len(self._left) + 1
    self._tell(f'[{number} of {self._total}{self._time_left()}] {name}')

  def end(self, key: str, seconds: float) -> None:
    """Notes that a run was trained here in so many seconds."""
    self._done += self._left.pop(key, 0.0)
    self._seconds += seconds

  def found(self, key: str) -> None:
    """Notes that a run was trained before, or by another process."""
    self._left.pop(key, None)

  def _time_left(self) -> str:
    if not self._done:
      return ''
    seconds = sum(self._left.values()) * self._seconds / self._done
    return f', {datetime.timedelta(seconds=round(seconds))} left'
