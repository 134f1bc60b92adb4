"""What is damage of a checkpoint, and what only keeps it from being read or written."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import re

from desloc_jax.errors import UserError
from desloc_jax.hosts.peers import peers

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_NOT_BY_SYSTEM, _UNKNOWN = 0, -1


class CheckpointDamaged(Exception):
  """Files of a checkpoint are missing or are not as they were written; names one."""


@contextlib.contextmanager
def damage_of(folder: pathlib.Path) -> Iterator[None]:
  """Turns what keeps a checkpoint from being decoded into CheckpointDamaged.

  What keeps it from being opened says nothing about it: a UserError with the system's reason.
  """
  try:
    yield
  except (UserError, CheckpointDamaged):
    raise
  except Exception as error:  # tensorstore raises of many kinds, each with pages of context.
    no_memory = isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED: Out of memory' in str(error)
    if no_memory or peers().lost_by(error):
      raise
    if _number(error) not in (_NOT_BY_SYSTEM, *_MISSING):
      file = getattr(_root(error), 'filename', None) or folder
      raise UserError(
        f'the checkpoint {folder} cannot be read: {_reason(error)} ({file}). It was left as it is.'
      ) from error
    raise CheckpointDamaged(f'The checkpoint {folder} cannot be read: {_reason(error)}.') from error


@contextlib.contextmanager
def one_line_error(what: str, folder: pathlib.Path) -> Iterator[None]:
  """Turns whatever keeps `folder` from being written into a UserError with the system's reason."""
  try:
    yield
  except Exception as error:
    if peers().lost_by(error):
      raise
    raise UserError(
      f'the checkpoint in {folder} {what}: {_reason(error)}. What was complete before is kept.'
    ) from error


def _root(error: BaseException) -> BaseException:
  while cause := error.__cause__ or error.__context__:
    error = cause
  return error


def _number(error: BaseException) -> int:
  """Returns the system's number of an error."""
  error = _root(error)
  if isinstance(error, OSError):
    return error.errno or _UNKNOWN
  # tensorstore gives it after all of the path, in brackets.
  found = re.search(r"\[os_error_code='(\d+)'|\[OS error (\d+)", str(error))
  return int(found[1] or found[2]) if found else _NOT_BY_SYSTEM


def _reason(error: BaseException) -> str:
  if (number := _number(error)) > 0:
    return os.strerror(number)
  error = _root(error)
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
