"""A run's numbers in Weights & Biases, beside metrics.jsonl: online, or in WORKDIR/wandb to be synced."""

from collections.abc import Mapping
import hashlib
import importlib
import pathlib
from typing import Any

from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import flat_numbers


def check_available(mode: str) -> None:
  """Raises UserError where Weights & Biases is asked for and not installed."""
  if mode == 'off':
    return
  try:
    importlib.import_module('wandb')
  except ImportError as error:
    raise UserError(f'log.wandb={mode} needs its package: pip install wandb.') from error


class WandbLog:
  """The run of a workdir there; a restart goes on in it."""

  def __init__(self, workdir: pathlib.Path, mode: str, options: Mapping[str, Any]):
    """Begins to log; `options` by dotted name are shown beside the numbers.

    Raises:
      UserError: it cannot begin, as without an account where the mode is 'online'.
    """
    import wandb

    try:
      self._run = wandb.init(
        project='desloc_jax',
        name=workdir.name,
        id=hashlib.sha256(str(workdir).encode()).hexdigest()[:16],
        resume='allow' if mode == 'online' else None,
        mode=mode,
        dir=workdir,
        config=dict(options),
        settings=wandb.Settings(silent=True),
      )
      # A restart may go back by some steps, which its own count of lines would not take.
      self._run.define_metric('*', step_metric='step')
    except Exception as error:  # Of the library, of many kinds.
      raise UserError(
        f"log.wandb={mode} cannot begin: {error!s:.200}. 'offline' needs no account."
      ) from error

  def write(self, line: Mapping[str, Any]) -> None:
    """Logs the numbers in a line of metrics.jsonl."""
    self._run.log(dict(flat_numbers(line)))

  def close(self) -> None:
    self._run.finish()
