"""Refuses configurations that cannot work, or cannot go on a run, before anything is compiled."""

import json
import math
import pathlib

from ml_collections import config_dict

from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.optimizer.inner import INNER_OPTIMIZERS, REFUSED
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.optimizer.schedules import SCHEDULES
from desloc_jax.optimizer.transform import TIMINGS
from desloc_jax.train.config import flatten, option, OPTIONS

_LIMIT = 2**31  # Of the integers that steps and sizes are counted in on devices.

# What may differ between the runs that share a workdir: nothing here changes what is computed (a
# mesh and a loss chunk change the order of sums, and so the last bits).
RESUMABLE = ('stop_at', 'log_every', 'mesh.', 'eval.', 'checkpoint.', 'model.loss_chunk')


def check_config(config: config_dict.ConfigDict) -> None:
  """Checks every value that can be checked without data or devices.

  Raises:
    UserError: names the option, its value and what would be valid.
  """
  present = flatten(config)
  if missing := [n for n in OPTIONS if not n.startswith('data.sources.') and n not in present]:
    raise UserError(
      f'the config lacks {", ".join(missing)}; begin it with default_config() as configs/ do.'
    )
  for name in (
    'workers',
    'batch_size',
    'accumulation',
    'seq_len',
    'steps',
    'log_every',
    'checkpoint.keep',
    'period_growth',
  ):
    _at_least(config, name, 1)
  for name in (
    'seed',
    'mesh.fsdp',
    'eval.every',
    'eval.sequences',
    'checkpoint.every',
    'model.vocab_size',
    'schedule.warmup_steps',
    'sync_warmup_steps',
  ):
    _at_least(config, name, 0)
  for name in (
    'inner.learning_rate',
    'inner.eps',
    'inner.eps_root',
    'inner.alpha',
    'inner.clip_norm',
    'inner.clip_value',
    'inner.weight_decay',
    'outer.learning_rate',
  ):
    if option(config, name) is not None:
      _at_least(config, name, 0, math.inf)
  for name, period in config.periods.items():
    if period is not None:
      _at_least(config, f'periods.{name}', 0)
  for name in (
    'inner.b1',
    'inner.b2',
    'inner.b3',
    'inner.momentum',
    'outer.momentum',
    'data.validation_fraction',
  ):
    if (value := option(config, name)) is not None and not 0 <= value < 1:
      raise UserError(f'{name} is {value!r}; expected a number in [0, 1).')
  if not 0 <= config.schedule.decay_fraction <= 1:
    raise UserError(
      f'schedule.decay_fraction is {config.schedule.decay_fraction}; expected a share in [0, 1].'
    )
  if (name := config.inner.name) in REFUSED:
    raise UserError(f'inner.name {name!r} is not supported: {REFUSED[name]}.')
  for name, choices in (
    ('method', METHODS),
    ('inner.name', INNER_OPTIMIZERS),
    ('schedule.name', SCHEDULES),
    ('timing', TIMINGS),
  ):
    if option(config, name) not in choices:
      raise unknown_choice(name, option(config, name), choices)
  weights = config.worker_weights
  if weights and not (
    len(weights) == config.workers and all(map(_is_weight, weights)) and any(weights)
  ):
    raise UserError(
      f'worker_weights is {tuple(weights)}; expected {config.workers} numbers >= 0, one for each '
      'worker, not all of them 0.'
    )
  if config.stop_at is not None and not 1 <= config.stop_at <= config.steps:
    raise UserError(
      f'stop_at is {config.stop_at}; expected a step from 1 to steps ({config.steps}).'
    )
  if config.schedule.warmup_steps >= config.steps:
    raise UserError(
      f'schedule.warmup_steps is {config.schedule.warmup_steps}, not less than steps '
      f'({config.steps}).'
    )
  if config.batch_size % config.accumulation:
    raise UserError(
      f'accumulation is {config.accumulation}, which does not divide batch_size '
      f'({config.batch_size}). Valid: {_divisors(config.batch_size)}.'
    )
  if config.seq_len > config.model.seq_len:
    raise UserError(
      f'seq_len is {config.seq_len}, longer than the model takes '
      f'(model.seq_len is {config.model.seq_len}).'
    )


def check_same_config(config: config_dict.ConfigDict, path: pathlib.Path) -> None:
  """Checks that the run recorded at `path` was made with `config`, as far as the trajectory goes.

  Raises:
    UserError: names the options that differ, with both values, or says that the file is damaged.
  """
  try:
    before = json.loads(path.read_text())
    items = before.items()
  except (ValueError, AttributeError) as error:
    raise UserError(f'{path} is not a readable config ({error}); use another --workdir.') from error
  now = flatten(config)
  differing = [
    f'{name} (was {before.get(name)!r}, is {now.get(name)!r})'
    for name in dict.fromkeys([*now, *(key for key, _ in items)])
    if before.get(name) != now.get(name) and not name.startswith(RESUMABLE)
  ]
  if differing:
    raise UserError(
      f'{path.parent} holds a run of another config: {", ".join(differing)}. '
      'Use another --workdir, or the config that it was made with.'
    )


def _at_least(config: config_dict.ConfigDict, name: str, least: int, limit: float = _LIMIT) -> None:
  value = option(config, name)
  if not least <= value < limit:
    bound = 'finite' if limit == math.inf else f'below {limit}'
    raise UserError(f'{name} is {value!r}; expected a number >= {least}, {bound}.')


def _is_weight(value: object) -> bool:
  return isinstance(value, int | float) and 0 <= value < float('inf')


def _divisors(number: int) -> str:
  return ', '.join(str(d) for d in range(1, number + 1) if number % d == 0)
