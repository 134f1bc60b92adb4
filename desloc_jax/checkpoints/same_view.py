"""Which checkpoints there are: process 0 decides, and the others wait until they see them too.

File systems of several machines may show one of them a list of files as it was a minute ago. What
is looked up by its name is then often there already.
"""

from collections.abc import Callable
import contextlib
import os
import pathlib
import time

from desloc_jax.errors import UserError
from desloc_jax.hosts.peers import peers

_PAUSE_S = 0.5


def listed_steps(folder: pathlib.Path) -> list[int]:
  """Returns the steps of the complete checkpoints in `folder`, as this process sees it.

  Raises:
    UserError: it cannot be listed.
  """
  try:
    return [int(name) for name in os.listdir(folder) if _is_step(name) and (folder / name).is_dir()]
  except FileNotFoundError:
    return []
  except OSError as error:
    raise UserError(f'{folder} cannot be read: {error.strerror}.') from error


def _is_step(name: str) -> bool:
  return name.isdecimal() and str(int(name)) == name


def agreed_steps(folder: pathlib.Path, wait_s: float) -> list[int]:
  """Returns the steps that process 0 sees, the newest first, the same on every process.

  Where another process lists one, process 0 looks it up by its name.

  Args:
    folder: of the checkpoints.
    wait_s: seconds for process 0 to see the newest that some process sees.

  Raises:
    UserError: on every process: it does not in that time, or the folder cannot be read.
  """
  return _wait_for_first(folder, wait_s, lambda steps: steps[:1])


def wait_until_none_is_extra(folder: pathlib.Path, wait_s: float) -> None:
  """Returns when no process lists a checkpoint that process 0 has not, one set aside say.

  Raises:
    UserError: on every process: one still does after `wait_s` seconds.
  """
  _wait_for_first(folder, wait_s, lambda steps: steps)


def _wait_for_first(
  folder: pathlib.Path, wait_s: float, needed: Callable[[list[int]], list[int]]
) -> list[int]:
  """Returns the steps that process 0 sees, when of all that are listed it sees those `needed`."""
  deadline = time.monotonic() + wait_s
  while True:
    views = peers().gather(peers().together(lambda: listed_steps(folder)))
    listed = sorted({step for view in views for step in view}, reverse=True)

    def look(listed=listed) -> tuple[list[int], bool]:
      return [s for s in listed if (folder / str(s)).is_dir()], time.monotonic() > deadline

    seen, late = peers().from_first(look)
    missing = [step for step in needed(listed) if step not in seen]
    if not missing:
      return seen
    if late:
      process = next(i for i, view in enumerate(views) if missing[0] in view)
      raise UserError(
        f'process {process} sees a checkpoint of step {missing[0]} in {folder}, and process 0 does '
        f'not, {wait_s:g} s later; all processes need one folder, on a disk that they share.'
      )
    time.sleep(_PAUSE_S)


def wait_until_visible(path: pathlib.Path, wait_s: float) -> None:
  """Returns when every process sees a file that process 0 sees.

  Raises:
    UserError: on every process: one does not in `wait_s` seconds.
  """
  deadline = time.monotonic() + wait_s

  def look() -> None:
    while not _is_visible(path):
      if time.monotonic() > deadline:
        raise UserError(
          f'{path} is not there after {wait_s:g} s, and process 0 has it: all processes need one '
          'folder, on a disk that they share.'
        )
      time.sleep(_PAUSE_S)

  peers().together(look)


def _is_visible(path: pathlib.Path) -> bool:
  with contextlib.suppress(OSError):  # Listing it anew may bring the view up to date.
    os.listdir(path.parent.parent)
    os.listdir(path.parent)
  try:
    return path.exists()
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from error
