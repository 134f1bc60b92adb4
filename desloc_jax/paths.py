"""Files and folders as users name them, made plain once, where they enter."""

import contextlib
import os
import pathlib
import re
import sys

from desloc_jax.errors import UserError

# One slash too: pathlib makes one of two.
_SCHEME = re.compile(r'([A-Za-z][\w+.-]+):/+')
# Of stores none too: ./s3:run is a folder of that name.
_STORE = re.compile(
  r'(gs|gcs|s3|s3a|r2|az|abfss?|wasbs?|hdfs|https?|ftp|file):(?!$)', re.IGNORECASE
)


def local_path(path: str | os.PathLike[str], option: str) -> str:
  """Returns a path of this machine with `~` expanded, and else as it is.

  Args:
    path: what the user wrote, a pattern or a name such as 'sotu' too.
    option: where it was written, for the error.

  Raises:
    UserError: it is empty, as a variable that is not set; or an address such as gs://bucket/run; or
      no UTF-8; or names no user's home.
  """
  path = os.fspath(path)
  if not path.strip():
    raise UserError(f'{option} is empty; expected a folder or file.')
  try:
    path.encode()
  except UnicodeEncodeError as error:
    encoding = sys.getfilesystemencoding()
    hint = (
      '' if encoding == 'utf-8' else f' This locale reads names as {encoding}: set PYTHONUTF8=1.'
    )
    raise UserError(f'{option}={path!r} is no UTF-8: {error.reason}.{hint}') from error
  if scheme := _SCHEME.match(path) or _STORE.match(path):
    rest = path[scheme.end() :]
    instead = f'/{rest}' if scheme[1] == 'file' else f'/mnt/{rest}'
    raise UserError(
      f'{option}={path} is an address of {scheme[1]}; expected a folder or file of this machine. '
      f'Mount it (gcsfuse, mountpoint-s3, NFS) and give its place here, such as {instead}.'
    )
  expanded = os.path.expanduser(path)
  if expanded == path and path.startswith('~'):
    raise UserError(
      f'{option}={path}: {path.partition("/")[0]} is no user here; ./{path} is a folder of that '
      'name.'
    )
  return expanded


def resolve(path: str | os.PathLike[str], option: str) -> pathlib.Path:
  """Returns the absolute path without links, `.` and `..`; it need not exist.

  Args:
    path: what the user wrote.
    option: where it was written, for the error.

  Raises:
    UserError: as `local_path`, or the system refuses the path.
  """
  try:
    resolved = pathlib.Path(local_path(path, option)).resolve()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
      resolved.stat()
    return resolved
  except FileNotFoundError as error:  # Of the path itself it would be no error.
    raise UserError(
      f'{option}={os.fspath(path):.200} cannot be used: the current folder is gone.'
    ) from error
  except OSError as error:
    raise UserError(f'{option}={os.fspath(path):.200} cannot be used: {error.strerror}.') from error
  except RuntimeError as error:  # Links that go round; OSError since Python 3.13.
    raise UserError(f'{option}={os.fspath(path):.200} is a link that leads to itself.') from error


def shown(path: pathlib.Path) -> str:
  """Returns a path as it is shortest from the current folder."""
  try:
    return str(path.relative_to(pathlib.Path.cwd()))
  except (ValueError, OSError):  # Elsewhere; or the current folder is gone.
    return str(path)
