"""Writing a file, or a folder, so that it is there complete or not at all."""

from collections.abc import Iterator
import contextlib
import fcntl
import glob
import os
import pathlib
import secrets
import shutil
import tempfile
from typing import BinaryIO

_SUFFIX = '.partial'


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """Opens a temporary neighbour of `path` for writing and renames it to `path` at the end.

  A process killed at any moment leaves the old `path` or the new one, never a part of it. Of several
  that write it at once each has a neighbour of its own, and the content of the last one stays. The
  next attempt removes what killed ones have left.
  """
  folder, name = os.path.split(os.path.abspath(path))
  _remove_left(folder, name)
  with naming(path):
    file = _new_neighbour(folder, name)
  partial = file.name
  try:
    with file, naming(path):
      yield file
      file.flush()
      os.fsync(file.fileno())
      os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(partial)
    raise
  _sync_folder(folder)


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a temporary neighbour of `path`, a folder to fill, and renames it to `path` at the end.

  What is left of killed processes is removed, as by `atomic_write`.
  """
  _remove_left(str(path.parent), path.name)
  partial = path.parent / _name_of_neighbour(path.name)
  with naming(path):
    partial.mkdir()
  descriptor = os.open(partial, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # As below.
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield partial
    partial.rename(path)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  finally:
    os.close(descriptor)


def unnamed_file() -> BinaryIO:
  """Returns an open file without a name, in memory where the system has that: no disk is needed."""
  if hasattr(os, 'memfd_create'):
    return open(os.memfd_create('desloc_jax'), 'w+b')
  return tempfile.TemporaryFile()


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
  """Has an error of the system say which file it is of: a write that fails does not know that.

  Nor is it that of a neighbour, of which the user knows nothing.
  """
  try:
    yield
  except OSError as error:
    if error.filename is None or str(error.filename).endswith(_SUFFIX):
      error.filename = os.fspath(path)
    raise


def _new_neighbour(folder: str, name: str) -> BinaryIO:
  """Returns a new file, which is held by a lock as long as it is open."""
  while True:
    file = open(os.path.join(folder, _name_of_neighbour(name)), 'xb')
    with contextlib.suppress(OSError):  # Some file systems have no locks: what is left stays there.
      fcntl.flock(file, fcntl.LOCK_EX)
    if os.path.exists(file.name):  # Else it was taken for one that is left, before it was held.
      return file
    file.close()


def _name_of_neighbour(name: str) -> str:
  return f'.{name}.{secrets.token_hex(4)}{_SUFFIX}'


def _remove_left(folder: str, name: str) -> None:
  """Removes the neighbours of `name` that nobody writes any more."""
  for left in glob.glob(os.path.join(glob.escape(folder), f'.{glob.escape(name)}.*{_SUFFIX}')):
    with contextlib.suppress(OSError):
      descriptor = os.open(left, os.O_RDONLY)
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(left) if os.path.isdir(left) else os.unlink(left)
      finally:
        os.close(descriptor)


def _sync_folder(folder: str) -> None:
  """Makes a rename in `folder` survive a power cut."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
