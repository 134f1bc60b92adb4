"""What hosts and devices do in some steps, written for TensorBoard."""

import pathlib
from typing import Any

from absl import logging
import jax

from desloc_jax.options.profile_steps import parse_steps


class Profile:
  """Records the steps that `profile.steps` names, of those that a run makes."""

  def __init__(self, text: str, folder: pathlib.Path, start: int, stop: int):
    """Takes the option, the folder that TensorBoard reads, and the run's first and last state."""
    self._first, self._last = parse_steps(text) or (0, 0)
    self._folder, self._records = folder, False
    if self._last and (self._last <= start or self._first > stop):
      logging.warning('profile.steps is %s: this run makes steps %d to %d.', text, start + 1, stop)
    self._first, self._last = max(self._first, start + 1), min(self._last, stop)
    self.after(start, None)

  def after(self, step: int, result: Any) -> None:
    """Begins or ends at a step that was dispatched, after a wait for its result."""
    if step == self._first - 1 and self._first <= self._last:
      jax.block_until_ready(result)
      jax.profiler.start_trace(self._folder)
      self._records = True
    if self._records and step == self._last:
      jax.block_until_ready(result)
      self.close()
      logging.warning('steps %d to %d are in %s/plugins.', self._first, self._last, self._folder)

  def close(self) -> None:
    """Ends what has begun."""
    if self._records:
      jax.profiler.stop_trace()
      self._records = False
