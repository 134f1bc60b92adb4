"""What reads a program's output and has seen enough, such as `head`, is no error."""

from collections.abc import Iterator
import contextlib
import os
import sys
from typing import Any, TextIO

READER_GONE = 141  # As a shell says it of a program that SIGPIPE ends.


def discard(stream: TextIO) -> None:
  """Has nobody read what is written to a stream from now on."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, stream.fileno())
  os.close(nowhere)


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
  """Has the program go on where nobody reads its output any more: a run is not there for that."""
  before = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = map(_Output, before)
  try:
    yield
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = before


class _Output:
  """A stream of text that is discarded once its reader is gone."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> int:
    try:
      return self._stream.write(text)
    except BrokenPipeError:
      discard(self._stream)
      return len(text)

  def flush(self) -> None:
    try:
      self._stream.flush()
    except BrokenPipeError:
      discard(self._stream)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)
