"""The folder of a run: which files it holds, and whether a run may use it."""

import json
import os
import pathlib

from ml_collections import config_dict

from desloc_jax.data.files import atomic_write
from desloc_jax.errors import UserError
from desloc_jax.train.config import flatten
from desloc_jax.train.config_checks import check_same_config

CONFIG_FILE = 'config.json'
METRICS_FILE = 'metrics.jsonl'
SUMMARY_FILE = 'summary.json'
PLOT_FILE = 'training.png'
CHECKPOINTS = 'checkpoints'
TENSORBOARD = 'tensorboard'


def check_workdir(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Checks that a run of `config` may begin or go on in `workdir`, and touches nothing.

  Raises:
    UserError: the folder cannot be written, holds files that are not a run's, or holds a run with
      checkpoints of another config (the keys that differ are named).
  """
  existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
  if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
    raise UserError(f'--workdir={workdir}: {existing} is not a folder that can be written to.')
  for name in (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, PLOT_FILE):
    if (workdir / name).exists() and not (workdir / name).is_file():
      raise UserError(f'{workdir / name} is not a file; use another --workdir.')
  for name in (CHECKPOINTS, TENSORBOARD):
    if (workdir / name).exists() and not (workdir / name).is_dir():
      raise UserError(f'{workdir / name} is not a folder; use another --workdir.')
  if not (workdir / CONFIG_FILE).exists():
    names = (METRICS_FILE, SUMMARY_FILE, PLOT_FILE, CHECKPOINTS, TENSORBOARD)
    # A run killed as it begins leaves an empty folder for its checkpoints.
    if foreign := [name for name in names if _is_there(workdir / name)]:
      raise UserError(
        f'{workdir} holds {", ".join(foreign)} but no {CONFIG_FILE}: it is no folder of a run; use '
        'another --workdir.'
      )
  elif has_checkpoint(workdir):  # Without one, a run of any config may start over.
    check_same_config(config, workdir / CONFIG_FILE)


def _is_there(path: pathlib.Path) -> bool:
  return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Returns whether there is a complete checkpoint: orbax renames its folder to its step last."""
  folder = workdir / CHECKPOINTS
  return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that a crash leaves either as it was or complete.

  Raises:
    UserError: it cannot be written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
      file.write(text.encode())
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror}.') from error


def write_config(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Records the resolved config."""
  write_text(workdir / CONFIG_FILE, json.dumps(flatten(config), indent=2) + '\n')
