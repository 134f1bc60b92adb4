"""Whether folders can be renamed where a run writes: a checkpoint becomes complete by that."""

import pathlib
import shutil

from desloc_jax.errors import UserError


def check_renaming(workdir: pathlib.Path) -> None:
  """Renames a folder with a file in `workdir`, which no other process uses, and removes it.

  Some mounted object stores cannot, and the first checkpoint would show it.

  Raises:
    UserError: it cannot be done.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    folder = workdir / '.renaming'
    shutil.rmtree(folder, ignore_errors=True)  # Of a process that was killed.
    folder.mkdir()
  except OSError as error:
    raise UserError(f'--workdir={workdir} cannot be written: {error.strerror}.') from error
  before, after = folder / 'before', folder / 'after'
  try:
    before.mkdir()
    (before / 'file').touch()
    before.rename(after)
    if not (after / 'file').exists():
      raise OSError(0, 'it lost its file')
  except OSError as error:
    raise UserError(
      f'in --workdir={workdir} a folder cannot be renamed ({error.strerror}), and that is how a '
      'checkpoint becomes complete. Use another disk; gcsfuse needs --rename-dir-limit=200000, or '
      'better a bucket with hierarchical namespace.'
    ) from error
  finally:
    shutil.rmtree(folder, ignore_errors=True)
