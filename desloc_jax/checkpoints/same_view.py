"""Which checkpoints there are: process 0 decides, and the others wait until they see them too.

File systems of several machines may show one of them a list of files as it was a minute ago. What
is looked up by its name is then often there already.
"""

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

  Where another process lists a newer one, process 0 looks it up by its name.

  Args:
    folder: of the checkpoints.
    wait_s: seconds for process 0 to see the newest that some process sees.

  Raises:
    UserError: on every process: it does not in that time, or the folder cannot be read.
  """
  deadline = time.monotonic() + wait_s
  seen_by: dict[int, int] = {}  # Step -> a process that lists it.
  while True:

    def look(seen_by=seen_by) -> set[int]:
      return set(listed_steps(folder)) | {s for s in seen_by if (folder / str(s)).is_dir()}

    own = peers().together(look)
    views = peers().gather([sorted(own), time.monotonic() > deadline])
    first, late = views[0]
    seen_by = {step: i for i, (steps, _) in reversed([*enumerate(views)]) for step in steps}
    if not seen_by or max(seen_by) in first:
      return sorted(first, reverse=True)
    if late:
      newest = max(seen_by)
      raise UserError(
        f'process {seen_by[newest]} sees a checkpoint of step {newest} in {folder}, and process 0 '
        f'does not, {wait_s:g} s later; all processes need one folder, on a disk that they share.'
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


def wait_until_none_is_extra(folder: pathlib.Path, wait_s: float) -> None:
  """Returns when no process lists a checkpoint that process 0 has not, one set aside say.

  Raises:
    UserError: on every process: one still does after `wait_s` seconds.
  """
  deadline = time.monotonic() + wait_s
  while True:
    own = peers().together(lambda: listed_steps(folder))
    listed = {step for steps in peers().gather(own) for step in steps}

    def look(listed=listed) -> tuple[list[int], bool]:
      return [s for s in listed if not (folder / str(s)).is_dir()], time.monotonic() > deadline

    extra, late = peers().from_first(look)
    if not extra:
      return
    if late:
      raise UserError(
        f'a process sees a checkpoint of step {max(extra)} in {folder}, which process 0 has not, '
        f'{wait_s:g} s later; all processes need one folder, on a disk that they share.'
      )
    time.sleep(_PAUSE_S)


def _is_visible(path: pathlib.Path) -> bool:
  with contextlib.suppress(OSError):  # Listing it anew may bring the view up to date.
    os.listdir(path.parent.parent)
    os.listdir(path.parent)
  try:
    return path.exists()
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from error
