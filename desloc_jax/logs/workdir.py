"""The folder of a run: which files it holds, and whether a run may use it."""

from collections.abc import Mapping
import glob
import json
import os
import pathlib

from absl import logging

from desloc_jax.errors import UserError
from desloc_jax.files import atomic_write
from desloc_jax.options.table import OPTIONS

CONFIG_FILE = 'config.json'
METRICS_FILE = 'metrics.jsonl'
SUMMARY_FILE = 'summary.json'
PLOT_FILE = 'training.png'
TOKENIZER_FILE = 'tokenizer.json'  # Of a run whose tokenizer is a file.
CHECKPOINTS = 'checkpoints'
TENSORBOARD = 'tensorboard'
LOCK_FILE = '.desloc_jax.lock'
POSITION_FILE = pathlib.Path('position', 'metadata')  # Of a checkpoint, where orbax puts it.
# Of the longest name in a checkpoint, below the workdir.
_LONGEST_NAME = 200


def check_workdir(workdir: pathlib.Path) -> None:
  """Checks that a run may begin or go on in `workdir`, and touches nothing.

  Raises:
    UserError: the folder cannot be written, or holds files that are not a run's.
  """
  try:
    _check_workdir(workdir)
  except OSError as error:
    raise UserError(f'--workdir={workdir} cannot be used: {error.strerror}.') from error


def _check_workdir(workdir: pathlib.Path) -> None:
  if workdir == workdir.parent:
    raise UserError(f'--workdir={workdir} is the root of all folders; name one for the run.')
  existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
  if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
    raise UserError(f'--workdir={workdir}: {existing} is not a folder that can be written to.')
  if glob.has_magic(str(workdir)):  # orbax would not find there what it has written.
    raise UserError(f'--workdir={workdir} has one of the characters * ? [; use another name.')
  longest = os.pathconf(existing, 'PC_PATH_MAX') - _LONGEST_NAME
  if (length := len(os.fsencode(workdir))) > longest:
    raise UserError(f'--workdir is {length} bytes long; expected at most {longest}.')
  for name in (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, PLOT_FILE, TOKENIZER_FILE, LOCK_FILE):
    path = workdir / name  # Nothing is written through a link.
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
      raise UserError(f'{workdir / name} is not a file; use another --workdir.')
  for name in (CHECKPOINTS, TENSORBOARD):
    if os.path.lexists(workdir / name) and not (workdir / name).is_dir():
      raise UserError(f'{workdir / name} is not a folder; use another --workdir.')
  if _has_checkpoint(workdir) and not _is_readable(workdir / CONFIG_FILE):
    logging.warning(
      '%s is lost or cut off; the checkpoints have what is in it.', workdir / CONFIG_FILE
    )
  elif (workdir / CONFIG_FILE).exists():
    _check_config_file(workdir / CONFIG_FILE)
  else:
    names = (METRICS_FILE, SUMMARY_FILE, PLOT_FILE, CHECKPOINTS, TENSORBOARD)
    # A run killed as it begins leaves an empty folder for its checkpoints.
    if foreign := [name for name in names if _is_there(workdir / name)]:
      raise UserError(
        f'{workdir} holds {", ".join(foreign)} but no {CONFIG_FILE}: it is no folder of a run; use '
        'another --workdir.'
      )


def _has_checkpoint(workdir: pathlib.Path) -> bool:
  folder = workdir / CHECKPOINTS
  steps = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
  return any((step / POSITION_FILE).is_file() for step in steps)


def _is_readable(path: pathlib.Path) -> bool:
  try:
    json.loads(path.read_bytes())
  except (FileNotFoundError, ValueError, RecursionError):
    return False
  return True


def _check_config_file(path: pathlib.Path) -> None:
  content = json.loads(path.read_bytes()) if _is_readable(path) else None
  if not isinstance(content, dict) or not content.keys() & OPTIONS.keys():
    raise UserError(f'{path} is not the config of a run; use another --workdir.')


def _is_there(path: pathlib.Path) -> bool:
  return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def write_text(path: pathlib.Path, text: str | bytes) -> None:
  """Writes a file, text as UTF-8, that a crash leaves either as it was or complete.

  Raises:
    UserError: it cannot be written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
      file.write(text if isinstance(text, bytes) else text.encode())
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror}.') from error


def write_options(options: Mapping[str, object], workdir: pathlib.Path) -> None:
  """Records all options by dotted name; a file that says the same stays as it is."""
  text = (json.dumps(options, indent=2) + '\n').encode()
  path = workdir / CONFIG_FILE
  if not path.exists() or path.read_bytes() != text:
    write_text(path, text)


def keep_tokenizer(file: bytes | None, workdir: pathlib.Path) -> None:
  """Keeps a tokenizer's file, so that a model can be read later as it was trained."""
  path = workdir / TOKENIZER_FILE
  if file is not None and not (path.exists() and path.read_bytes() == file):
    write_text(path, file)
