"""Whether folders can be renamed where a run writes: a checkpoint becomes complete by that."""

import contextlib
import pathlib
import shutil
import tempfile

from desloc_jax.errors import UserError


def check_renaming(workdir: pathlib.Path) -> None:
  """Renames a folder with a file in `workdir`, and removes it.

  Some mounted object stores cannot, and the first checkpoint would show it.

  Raises:
    UserError: it cannot be done.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix='.renaming-', dir=workdir))
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
    with contextlib.suppress(OSError):
      shutil.rmtree(folder)
