"""Writing a file so that it is there complete or not at all."""

from collections.abc import Iterator
import contextlib
import os
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """Opens a temporary neighbour of `path` for writing and renames it to `path` at the end.

  A process killed at any moment leaves the old `path` or the new one, never a part of it; the
  `.partial` file that may stay behind is overwritten by the next attempt.
  """
  path = os.fspath(path)
  partial = path + '.partial'
  with contextlib.suppress(FileNotFoundError):
    os.unlink(partial)  # It may be a link to a file elsewhere, which is not to be written.
  with open(partial, 'xb') as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)
  _sync_folder(os.path.dirname(path) or '.')


def _sync_folder(folder: str) -> None:
  """Makes a rename in `folder` survive a power cut."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
