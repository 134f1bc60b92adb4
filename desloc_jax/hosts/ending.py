"""How a process ends at once: with one line, whatever its threads and JAX's C++ are doing."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

BAD_START = 2
PEER_LOST = 4
_OTHERS_S = 2.0  # Until the others have ended, where they are to be first.

_stderr = 2
_goes_last = False
_may_be_ended = False
_ends_with_run = False
_leaving = threading.Lock()
_code_said: int | None = None
_abort_means = (
  PEER_LOST,
  'error: another process, or process 0 that coordinates them, died or hangs.',
)


def belong_to_run(alone: bool = True, ends_with_it: bool = False) -> None:
  """Says what this process is there for.

  Args:
    alone: for runs alone, so that it may be ended at any moment by one: unlike a notebook's, or one
      that has other processes to end.
    ends_with_it: for one run, unlike an experiment's.
  """
  global _may_be_ended, _ends_with_run
  _may_be_ended, _ends_with_run = alone, ends_with_it


def may_be_ended() -> bool:
  """Returns whether this process is there for runs alone."""
  return _may_be_ended


def ends_with_run() -> bool:
  """Returns whether nothing comes in this process after the run."""
  return _ends_with_run


def go_last(is_last: bool) -> None:
  """Says whether this process coordinates others: where it goes, they are aborted."""
  global _goes_last
  _goes_last = is_last


def write_to(descriptor: int) -> int:
  """Sets where last lines go, stderr at first; returns where they went before."""
  global _stderr
  before, _stderr = _stderr, descriptor
  return before


def leave(code: int, text: str = '') -> None:
  """Ends the process at once, with a last line; JAX would wait minutes for the others at exit."""
  global _code_said
  with _leaving:
    first = _code_said is None
    if first:
      _code_said = code
      for say in (sys.stdout.flush, sys.stderr.flush, lambda: _say(text)):
        with contextlib.suppress(OSError):  # Nobody reads it, or its disk is full.
          say()
      os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # What C++ threads have to say now is noise.
  time.sleep(_OTHERS_S if _goes_last or not first else 0)
  os._exit(_code_said)


def _say(text: str) -> None:
  if text:
    os.write(_stderr, f'{text}\n'.encode())


def set_last_words(code: int, text: str) -> tuple[int, str]:
  """Sets the exit code and what is said where JAX's C++ aborts this process; returns those before."""
  global _abort_means
  before, _abort_means = _abort_means, (code, text)
  return before


def catch_aborts() -> None:
  """Has `leave` run where JAX's C++ calls abort(), even while Python waits for a device.

  Python's own handlers only run between instructions of the main thread.
  """
  libc = ctypes.CDLL(None)
  libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, type(_HANDLER)]
  libc.signal(signal.SIGABRT, _HANDLER)


def _on_abort(_: int) -> None:
  leave(*_abort_means)


# Kept as long as the process lives: C calls it.
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_on_abort)
