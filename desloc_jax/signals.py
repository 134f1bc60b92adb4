"""Signals that ask a program to end, heard at once and answered in order.

Python runs its own handlers between two of its instructions, which C code (a compilation, the training
of a tokenizer, a collective) can keep waiting for minutes.
"""

from collections.abc import Callable, Collection, Iterator
import contextlib
import os
import signal
import threading
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TELL_S = 0.5  # Who reads what is told may be what hangs.
_CLEAN_UP_S = 3.0  # In which Python is to come to its handler; else it is in C code for long.


class Ended(KeyboardInterrupt):
  """The program is asked to end by a signal, `number`; libraries take it as they take Ctrl-C."""

  def __init__(self, number: int):
    super().__init__()
    self.number = number


@contextlib.contextmanager
def heard(numbers: Collection[int], hear: Callable[[int], None]) -> Iterator[None]:
  """Calls `hear` with the number of each of these signals, at once and from another thread.

  Only from the main thread, for signals with a handler of Python's.
  """
  read, write = os.pipe()
  os.set_blocking(write, False)
  before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

  def listen() -> None:
    while number := os.read(read, 1):
      if number[0] in numbers:
        hear(number[0])
    os.close(read)

  threading.Thread(target=listen, daemon=True).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(write)


def leave(number: int, tell: Callable[[int], None]) -> NoReturn:
  """Ends the process at once with a shell's exit code, after `tell` if that does not take long."""
  teller = threading.Thread(target=tell, args=(number,), daemon=True)
  teller.start()
  teller.join(_TELL_S)
  os._exit(128 + number)


@contextlib.contextmanager
def raised(tell: Callable[[int], None]) -> Iterator[None]:
  """Raises `Ended` in the block at the first signal of `ENDING`, so that what is half done is removed.

  A second one, or C code that does not come back in seconds, ends the process at once, after `tell`.
  What was ignored by who started the process (nohup) stays so. Outside the main thread nothing is
  caught.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  numbers = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
  at_handler, count = threading.Event(), 0

  def end(number: int, frame: object) -> NoReturn:
    del frame
    if not at_handler.is_set():  # The next one ends the process.
      at_handler.set()
      raise Ended(number)

  def leave_if_kept(number: int) -> None:
    if not at_handler.wait(_CLEAN_UP_S):
      leave(number, tell)

  def hear(number: int) -> None:
    nonlocal count
    count += 1
    if count > 1:
      leave(number, tell)
    threading.Thread(target=leave_if_kept, args=(number,), daemon=True).start()

  previous = {number: signal.signal(number, end) for number in numbers}
  try:
    with heard(numbers, hear):
      yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler or signal.SIG_DFL)  # None: one that Python does not know.
