"""One run a workdir: a lock that its process holds, and that ends with it however it ends."""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import platform
import time

from absl import logging

from desloc_jax.errors import UserError
from desloc_jax.logs.workdir import LOCK_FILE

# What file systems say that have no locks, or none across machines.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the lock of `workdir`, which is made where it is missing, as long as the block runs.

  The system gives the lock back when the process ends, by kill -9 too; a file left behind locks
  nothing. It is flock, which NFS carries over to its server: runs on other machines see it.

  Raises:
    UserError: another process holds it, with its host and number; or the folder cannot be written.
  """
  made = [path for path in (workdir, *workdir.parents) if not path.exists()]
  path = workdir / LOCK_FILE
  try:
    descriptor = _take(path)
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror}.') from error
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      path.unlink()  # While it is held: who waits for this file sees that it is gone.
    os.close(descriptor)
    with contextlib.suppress(OSError):
      for folder in made:  # Nothing is left of a run that was refused.
        folder.rmdir()


def _take(path: pathlib.Path) -> int:
  """Returns the open file, locked unless its file system has no locks, which is said."""
  while True:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # A run that was refused took the folder with it.
      descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
      try:
        _lock(path, descriptor)
        here = os.stat(path, follow_symlinks=False)
        if os.path.samestat(here, os.fstat(descriptor)):  # Else of a run that has just ended.
          _sign(descriptor)
          return descriptor
      except BaseException:
        os.close(descriptor)
        raise
      os.close(descriptor)


def _lock(path: pathlib.Path, descriptor: int) -> None:
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise UserError(
      f'{path.parent} is in use by {_holder(descriptor)}; two runs in one folder would spoil each '
      'other. Wait for it, end it, or use another --workdir.'
    ) from None
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    logging.warning(
      '%s cannot be locked (%s): see to it that no other run uses this folder.',
      path,
      error.strerror,
    )


def _sign(descriptor: int) -> None:
  begun = time.strftime('%Y-%m-%d %H:%M:%S %z')
  holder = {'host': platform.node(), 'process': os.getpid(), 'since': begun}
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
  """Returns who holds the lock, who may be about to write that."""
  for _ in range(10):
    try:
      holder = json.loads(os.pread(descriptor, 4096, 0))
      return 'process {process} on {host} since {since}'.format(**holder)
    except (ValueError, KeyError, TypeError, OSError):
      time.sleep(0.1)
  return 'another process'
