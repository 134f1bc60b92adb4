"""Ctrl-C and SIGTERM: the step in progress is finished and saved before the process ends."""

import os
import signal
import threading

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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

  Used as a context manager. Outside the main thread, where signals cannot be caught, it does
  nothing.
  """

  def __init__(self):
    self.signal_number: int | None = None
    self._previous = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      # Python handles signals between two of its own instructions, which a step or a compilation
      # can keep waiting for minutes; the bytes in this pipe come at once.
      read, self._write = os.pipe()
      os.set_blocking(self._write, False)
      self._previous_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
      threading.Thread(target=_exit_at_second, args=(read,), daemon=True).start()
      for number in _SIGNALS:
        self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    if self._previous:
      signal.set_wakeup_fd(self._previous_wakeup)
      os.close(self._write)

  def _note(self, number, frame):
    del frame
    self.signal_number = number
    for each in self._previous:
      signal.signal(each, signal.SIG_DFL)


def _exit_at_second(pipe: int) -> None:
  """Reads the numbers of signals until the pipe is closed; exits as a shell has it at the second."""
  count = 0
  while number := os.read(pipe, 1):
    count += number[0] in _SIGNALS
    if count == 2:
      os._exit(128 + number[0])
  os.close(pipe)
