"""The models in a run's checkpoints, read beside the run, which may go on: nothing is changed."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any, TypeVar

import jax
import numpy as np

from desloc_jax import data as data_lib
from desloc_jax.checkpoints import checksums
from desloc_jax.checkpoints.damage import CheckpointDamaged, damage_of
from desloc_jax.checkpoints.leaves import LeafReader
from desloc_jax.checkpoints.same_view import listed_steps
from desloc_jax.checkpoints.store import read_position, read_shapes, STATE
from desloc_jax.data.tokenizers import BUILT_IN
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.logs.workdir import CHECKPOINTS, CONFIG_FILE, SUMMARY_FILE, TOKENIZER_FILE
from desloc_jax.model import GPTConfig
from desloc_jax.options.table import OPTIONS
from desloc_jax.paths import shown

_Result = TypeVar('_Result')


class RunModel:
  """The model of one checkpoint; see `StoredModel`."""

  def __init__(self, workdir: pathlib.Path, step: int, mean: bool = False):
    """Reads what goes with a checkpoint, after comparing all of its files with their checksums.

    Args:
      workdir: of the run.
      step: of a complete checkpoint.
      mean: whether of the workers' own parameters, which differs between two parameter syncs from
        the consensus model, which the run evaluates.

    Raises:
      UserError: it is damaged, or of no run.
    """
    self._workdir, self._step = workdir, step
    self._folder = workdir / CHECKPOINTS / str(step)
    self.label = f'{shown(workdir)}, step {step}'
    if damage := checksums.find_damage(self._folder):
      raise UserError(f'{self.label} is damaged: {damage}. The other steps: {_others(self)}.')
    self._position = self._reading(lambda: read_position(self._folder))
    self._leaves = self._reading(lambda: read_shapes(self._folder))
    has_local = any(name.startswith('optimizer.params.') for name in self._leaves)
    self._is_mean = mean and has_local
    self.options: Mapping[str, Any] = self._position['config']
    self.seq_len: int = self.options['seq_len']

  @functools.cached_property
  def config(self) -> GPTConfig:
    """As it was trained."""
    end = self.tokenizer.end_of_document
    return model_of_options(self.options, self._leaves['params.embedding'][0][0], end)

  @functools.cached_property
  def tokenizer(self) -> data_lib.Tokenizer:
    """The run's own.

    Raises:
      UserError: it is not to be found any more.
    """
    return run_tokenizer(self._workdir, self.options, self._position.get('tokenizer'))

  def read(self, leaf: str) -> np.ndarray:
    """Returns a parameter, float32, all layers.

    Raises:
      UserError: the run removed the checkpoint meanwhile.
    """

    def read() -> jax.Array:
      shape, dtype = self._leaves[f'params.{leaf}']
      cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
      like = jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=cpu)
      with damage_of(self._folder):
        reader = LeafReader(self._folder / STATE)
        if not self._is_mean:
          return reader.read(f'params.{leaf}', like)
        rows = [row for row, finite in enumerate(self._position['finite']) if finite]
        return reader.read_mean(f'optimizer.params.{leaf}', rows, like)

    return np.asarray(self._reading(read))

  @property
  def about(self) -> dict[str, Any]:
    lines = {line['step']: line for line in read_metrics(self._workdir)}
    line = lines.get(self._step, {})
    return {
      'run': self._workdir.name,
      'step': self._step,
      'parameters': 'mean' if self._is_mean else 'consensus',
      'method': self.options['method'],
      'workers': self.options['workers'],
      'tokens': self._position['next']['tokens'],
      'bytes_sent_per_worker': self._position['next']['bytes_per_worker'],
      'training_loss': line.get('loss'),
      # The run evaluates the consensus model.
      'validation_loss': None if self._is_mean else line.get('val_loss'),
      'data': {
        name.split('.')[2]: value
        for name, value in self.options.items()
        if name.startswith('data.sources.') and name.endswith('.path')
      },
      'commit': _summary(self._workdir).get('versions', {}).get('commit'),
    }

  def _reading(self, read: Callable[[], _Result]) -> _Result:
    try:
      return read()
    except (CheckpointDamaged, KeyError, TypeError) as error:
      raise UserError(
        f'{self.label} cannot be read: {error!s:.200}. A run that goes on removes its oldest '
        'checkpoints; checkpoint.keep_every keeps some for good.'
      ) from error


def open_steps(
  workdir: pathlib.Path, steps: Sequence[int] = (), mean: bool = False
) -> list[RunModel]:
  """Returns the models of these steps, of the newest checkpoint if none is named.

  Raises:
    UserError: the folder has no such checkpoint, or it is damaged.
  """
  there = steps_of(workdir)
  for step in steps:
    if step not in there:
      raise UserError(
        f'{workdir} has no checkpoint of step {step}; it has {", ".join(map(str, there))}.'
      )
  return [RunModel(workdir, step, mean) for step in steps or there[:1]]


def steps_of(workdir: pathlib.Path) -> list[int]:
  """Returns the steps of a run's complete checkpoints, the newest first.

  Raises:
    UserError: there are none.
  """
  steps = sorted(listed_steps(workdir / CHECKPOINTS), reverse=True)
  if not steps:
    is_run = (workdir / CONFIG_FILE).exists()
    raise UserError(f'{workdir} {"has no checkpoint yet" if is_run else "is no folder of a run"}.')
  return steps


def model_of_options(
  options: Mapping[str, Any], vocab_size: int, end_of_document: int
) -> GPTConfig:
  """Returns the model of a run, from its options by dotted name, as JSON has them.

  Options that the run did not know yet have the default of today.
  """
  values = {
    field.name: options.get(name, OPTIONS[name].default)
    for field in dataclasses.fields(GPTConfig)
    if (name := f'model.{field.name}') in OPTIONS
  }
  if values['attention'] == 'cudnn':
    values['attention'] = 'auto'  # The same on a GPU, and it is read elsewhere too.
  values |= {'vocab_size': vocab_size, 'rope_scaling': tuple(values['rope_scaling'])}
  if not options.get('data.attend_across_documents', True):
    values['document_end'] = end_of_document
  return GPTConfig(**values)


def run_tokenizer(
  workdir: pathlib.Path, options: Mapping[str, Any], fingerprint: str | None
) -> data_lib.Tokenizer:
  """Returns the tokenizer that a run was trained with, from its workdir if it keeps it.

  Raises:
    UserError: there is none, or it has changed since.
  """
  name = options['data.tokenizer']
  kept = workdir / TOKENIZER_FILE
  path = name if name in BUILT_IN or not kept.exists() else str(kept)
  tokenizer = data_lib.load_tokenizer(path, options.get('data.end_of_document') or None)
  if fingerprint and tokenizer.fingerprint != fingerprint:
    raise UserError(
      f'{path} is not the tokenizer that {workdir} was trained with: its fingerprint is '
      f'{tokenizer.fingerprint:.12}, and that was {fingerprint:.12}. Bring back the file.'
    )
  return tokenizer


def _others(model: RunModel) -> str:
  steps = listed_steps(model._folder.parent)
  return ', '.join(str(s) for s in sorted(steps) if s != model._step) or 'none'


def _summary(workdir: pathlib.Path) -> Mapping[str, Any]:
  try:
    return json.loads((workdir / SUMMARY_FILE).read_bytes())
  except (OSError, ValueError):
    return {}
