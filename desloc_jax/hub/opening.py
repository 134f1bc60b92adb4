"""Which model a command means: checkpoints of a run, or a folder."""

import argparse
import pathlib

from desloc_jax.commands import Option
from desloc_jax.errors import UserError
from desloc_jax.hub.folders import FolderModel
from desloc_jax.hub.run_models import open_steps, steps_of
from desloc_jax.hub.stored import Mean, StoredModel
from desloc_jax.paths import resolve
from desloc_jax.valid import one_of

# By which a command names its model, in a run or a folder.
OF_RUN = {
  'workdir': Option(pathlib.Path, 'of the run'),
  'step': Option('', 'N[,M..], of the checkpoint (default: the newest)'),
  'parameters': Option(
    'consensus', "mean: of the workers' own, between syncs", one_of(('consensus', 'mean'))
  ),
}
OF_RUN_OR_FOLDER = OF_RUN | {
  'model': Option(pathlib.Path, 'an exported folder, or one of the hub, in place of a run')
}


def open_several(arguments: argparse.Namespace) -> list[StoredModel]:
  """Returns the models that --workdir and --step, or --model, name.

  Raises:
    UserError: there is no such model, or both or neither is named.
  """
  folder = getattr(arguments, 'model', None)
  if bool(arguments.workdir) == bool(folder):
    raise UserError('expected one of --workdir and --model. See --help.')
  is_mean = arguments.parameters == 'mean'
  if folder:
    if arguments.step or is_mean:
      raise UserError('--step and --parameters are of a run; --model has one model.')
    return [FolderModel(resolve(folder, '--model'))]
  workdir = resolve(arguments.workdir, '--workdir')
  return open_steps(workdir, _steps(arguments.step, workdir), is_mean)


def open_one(arguments: argparse.Namespace) -> StoredModel:
  """Returns the model that a command names; that of several steps is their mean."""
  models = open_several(arguments)
  return models[0] if len(models) == 1 else Mean(models)


def _steps(text: str, workdir: pathlib.Path) -> list[int]:
  if text == 'all':
    return sorted(steps_of(workdir))
  try:
    steps = [int(step) for step in text.split(',')] if text else []
  except ValueError as error:
    raise UserError(f'--step={text}: expected numbers with commas between them, or all.') from error
  return sorted(set(steps))
