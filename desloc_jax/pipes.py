"""What a program prints to: readers that have seen enough, such as `head`, closed or full streams.

None of these is a reason for a run to end, nor for a page of traceback.
"""

from collections.abc import Iterator
import contextlib
import os
import sys
from typing import Any, TextIO

READER_GONE = 141  # As a shell says it of a program that SIGPIPE ends.


def open_streams() -> None:
  """Opens what is closed of stdin, stdout and stderr, and has the last two take any text.

  Else the next file that is opened would be taken for one: C++ prints to descriptor 2.
  """
  for descriptor, (name, mode) in enumerate((('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w'))):
    try:
      os.fstat(descriptor)
    except OSError:
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # The lowest that is free.
    if getattr(sys, name) is None:
      setattr(sys, name, open(descriptor, mode, closefd=False))
  for stream in (sys.stdout, sys.stderr):
    if getattr(stream, 'errors', '') == 'strict' and hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')


def discard(stream: TextIO) -> None:
  """Has nobody read what is written to a stream from now on."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, stream.fileno())
  os.close(nowhere)


def tell(line: str) -> None:
  """Prints a line to stderr, if that can be written."""
  try:
    print(line, file=sys.stderr, flush=True)
  except OSError:
    discard(sys.stderr)


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
  """Has the program go on where what it prints cannot be written: a run is not there for that.

  That nobody reads on is the reader's choice; a full disk or a lost terminal is told on stderr.
  """
  open_streams()
  before = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = map(_Output, before)
  try:
    yield
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = before


class _Output:
  """A stream of text that is discarded once it cannot be written."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> int:
    try:
      return self._stream.write(text)
    except OSError as error:
      self._give_up(error)
      return len(text)

  def flush(self) -> None:
    try:
      self._stream.flush()
    except OSError as error:
      self._give_up(error)

  def _give_up(self, error: OSError) -> None:
    discard(self._stream)
    if not isinstance(error, BrokenPipeError) and sys.stderr is not self:
      tell(f'warning: what follows is not shown, as output cannot be written: {error.strerror}.')

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)
