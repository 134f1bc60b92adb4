"""Refuses configurations that cannot work, or cannot go on a run, before anything is compiled."""

from collections.abc import Mapping
import math

from ml_collections import config_dict

from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.optimizer.inner import INNER_OPTIMIZERS, REFUSED
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.optimizer.schedules import SCHEDULES
from desloc_jax.optimizer.transform import TIMINGS
from desloc_jax.train.config import ALLOWABLE, flatten, option, OPTIONS, worker_batch_size
from desloc_jax.train.failures import parse_away

SCHEDULE_UNITS = ('steps', 'tokens')
_LIMIT = 2**31  # Of the integers that steps and sizes are counted in on devices.

# What may differ between the runs that share a workdir: nothing here changes what is computed (a
# mesh and a loss chunk change the order of sums, and so the last bits).
RESUMABLE = (
  'stop_at',
  'log_every',
  'mesh.',
  'eval.',
  'checkpoint.',
  'restore.',
  'model.loss_chunk',
  'plan.',
)
PLAN_QUANTITIES = (
  'plan.bandwidth_gbps',
  'plan.bytes_per_value',
  'plan.peak_tflops',
  'plan.memory_gb',
)
# What may differ where the number of workers does, which always may.
FOLLOW_WORKERS = ('workers', 'worker_weights', 'accumulation', 'failures.away')


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
    'failures.steps',
  ):
    _at_least(config, name, 1)
  if config.stop_at is not None:
    _at_least(config, 'stop_at', 1)
  for name in (
    'seed',
    'global_batch_size',
    'health.warmup_syncs',
    'mesh.fsdp',
    'eval.every',
    'eval.sequences',
    'checkpoint.every',
    'model.vocab_size',
    'schedule.warmup_steps',
    'sync_warmup_steps',
    'plan.devices_per_worker',
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
    'health.threshold',
    'plan.latency_ms',
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
    'health.decay',
    'failures.rate',
    'plan.overlap',
  ):
    if (value := option(config, name)) is not None and not 0 <= value < 1:
      raise UserError(f'{name} is {value!r}; expected a number in [0, 1).')
  for name in PLAN_QUANTITIES:
    if not 0 < (value := option(config, name)) < math.inf:
      raise UserError(f'{name} is {value!r}; expected a finite number above 0.')
  if not 0 < config.plan.mfu <= 1:
    raise UserError(f'plan.mfu is {config.plan.mfu!r}; expected a share in (0, 1].')
  if not 0 < config.plan.share < 1:
    raise UserError(f'plan.share is {config.plan.share!r}; expected a share in (0, 1).')
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
    ('schedule.unit', SCHEDULE_UNITS),
  ):
    if option(config, name) not in choices:
      raise unknown_choice(name, option(config, name), choices)
  for name in allowed_names(config):
    if name not in ALLOWABLE:
      raise unknown_choice('restore.allow', name, ALLOWABLE)
  parse_away(config.failures.away, config.workers)
  weights = config.worker_weights
  if weights and not (
    len(weights) == config.workers and all(map(_is_weight, weights)) and any(weights)
  ):
    raise UserError(
      f'worker_weights is {tuple(weights)}; expected {config.workers} numbers >= 0, one for each '
      'worker, not all of them 0.'
    )
  if config.schedule.warmup_steps >= config.steps:
    raise UserError(
      f'schedule.warmup_steps is {config.schedule.warmup_steps}, not less than steps '
      f'({config.steps}).'
    )
  if config.global_batch_size % config.workers:
    raise UserError(
      f'global_batch_size is {config.global_batch_size}, which {config.workers} workers cannot '
      'share evenly.'
    )
  batch_size = worker_batch_size(config)
  if batch_size % config.accumulation:
    raise UserError(
      f'accumulation is {config.accumulation}, which does not divide the {batch_size} sequences of '
      f'a worker. Valid: {_divisors(batch_size)}.'
    )
  if config.seq_len > config.model.seq_len:
    raise UserError(
      f'seq_len is {config.seq_len}, longer than the model takes '
      f'(model.seq_len is {config.model.seq_len}).'
    )


def changed_options(config: config_dict.ConfigDict, before: Mapping[str, object]) -> dict[str, str]:
  """Returns the options that differ from those of a checkpoint's run, with both values.

  Options that do not change what is computed are left out.

  Args:
    config: of this run.
    before: options by dotted name.

  Raises:
    UserError: one differs that neither `restore.allow` nor a change of `workers` permits.
  """
  now = flatten(config)
  changed = {
    name: f'{name} (was {before.get(name)!r}, is {now.get(name)!r})'
    for name in dict.fromkeys([*now, *before])
    if before.get(name) != now.get(name) and not name.startswith(RESUMABLE)
  }
  permitted = [prefix for name in allowed_names(config) for prefix in ALLOWABLE[name]]
  follows_workers = lambda name: name in FOLLOW_WORKERS or name.endswith('.worker_weights')
  refused = [
    name
    for name in changed
    if not name.startswith(tuple(permitted))
    and not ('workers' in changed and follows_workers(name))
  ]
  if refused:
    groups = [g for g, options in ALLOWABLE.items() if any(n.startswith(options) for n in refused)]
    hint = f', or permit it by restore.allow={",".join(groups)}' if groups else ''
    raise UserError(
      f'the workdir holds a run of another config: {", ".join(changed[name] for name in refused)}. '
      f'Use another --workdir, or the config that it was made with{hint}.'
    )
  return changed


def allowed_names(config: config_dict.ConfigDict) -> list[str]:
  """Returns the parts of `restore.allow`."""
  return [name for name in map(str.strip, config.restore.allow.split(',')) if name]


def _at_least(config: config_dict.ConfigDict, name: str, least: int, limit: float = _LIMIT) -> None:
  value = option(config, name)
  if not least <= value < limit:
    bound = 'finite' if limit == math.inf else f'below {limit}'
    raise UserError(f'{name} is {value!r}; expected a number >= {least}, {bound}.')


def _is_weight(value: object) -> bool:
  return isinstance(value, int | float) and 0 <= value < float('inf')


def _divisors(number: int) -> str:
  return ', '.join(str(d) for d in range(1, number + 1) if number % d == 0)
