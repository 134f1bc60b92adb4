"""Ctrl-C and SIGTERM: the step in progress is finished and saved before the process ends."""

import signal
import threading


class Interrupted(Exception):
  """The run was asked to stop and has saved its state.

  Attributes:
    step: the last step done, of which there is a checkpoint.
    exit_code: 0 after SIGTERM, which a scheduler sends; 130 after Ctrl-C, as shells have it.
  """

  def __init__(self, step: int, signal_number: int):
    self.step = step
    self.exit_code = 0 if signal_number == signal.SIGTERM else 130
    name = signal.Signals(signal_number).name
    super().__init__(f'stopped by {name} after step {step}, saved; the same command goes on.')


class StopRequest:
  """Notes the first signal to stop; a second one ends the process at once.

  Used as a context manager. Outside the main thread, where signals cannot be caught, it does nothing.
  """

  def __init__(self):
    self.signal_number: int | None = None
    self._previous = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number, frame):
    del frame
    self.signal_number = number
    for each in self._previous:
      signal.signal(each, signal.SIG_DFL)
