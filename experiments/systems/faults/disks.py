"""Disks that are full and folders that cannot be written, by mounting: root, on Linux."""

from collections.abc import Iterator
import contextlib
import pathlib
import subprocess
import tempfile
import time

DISK = 'size=64m'


def why_no_mounts() -> str:
  """Returns why nothing can be mounted here; empty if it can."""
  with tempfile.TemporaryDirectory() as folder:
    try:
      with small_disk(pathlib.Path(folder)), read_only(pathlib.Path(folder)):
        return ''
    except (OSError, subprocess.CalledProcessError) as error:
      return (getattr(error, 'stderr', '') or str(error)).strip()


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[None]:
  """Mounts a small disk of memory at a folder, which is made."""
  folder.mkdir(exist_ok=True)
  with _mounted(folder, '-t', 'tmpfs', '-o', DISK, 'tmpfs'):
    yield


@contextlib.contextmanager
def read_only(folder: pathlib.Path) -> Iterator[None]:
  """Makes a folder read-only, also for root."""
  with _mounted(folder, '--bind', str(folder)):
    _command('mount', '-o', 'remount,bind,ro', str(folder))
    yield


@contextlib.contextmanager
def _mounted(folder: pathlib.Path, *what: str) -> Iterator[None]:
  _command('mount', *what, str(folder))
  try:
    yield
  finally:
    _command('umount', '--lazy', str(folder))


def _command(*command: str) -> None:
  subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def filled(folder: pathlib.Path, process: subprocess.Popen | None = None) -> Iterator[None]:
  """Fills a disk; for as long as `process` runs, so that nothing it deletes makes room."""
  filler = folder / 'filler'
  try:
    with filler.open('wb', buffering=0) as file:
      _fill(file)
      while process is not None and process.poll() is None:
        time.sleep(0.01)
        _fill(file)
    yield
  finally:
    filler.unlink()


def _fill(file) -> None:
  for size in (2**20, 2**12, 1):
    with contextlib.suppress(OSError):
      while file.write(bytes(size)) == size:
        pass
