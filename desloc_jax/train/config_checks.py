"""Refuses configurations that cannot work, or cannot go on a run, before anything is compiled."""

from collections.abc import Iterator, Mapping, Sequence
import math
import re

from ml_collections import config_dict

from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.optimizer.inner import INNER_OPTIMIZERS, REFUSED
from desloc_jax.optimizer.methods import METHODS, MULTIPLES
from desloc_jax.optimizer.schedules import SCHEDULES
from desloc_jax.optimizer.transform import TIMINGS
from desloc_jax.train.config import (
  ALLOWABLE,
  default_config,
  flatten,
  option,
  OPTIONS,
  worker_batch_size,
)
from desloc_jax.train.failures import parse_away
from desloc_jax.train.topology import parse_topology

SCHEDULE_UNITS = ('steps', 'tokens')
_LIMIT = 2**31  # Of the integers that steps and sizes are counted in on devices.
_FLOAT32_LIMIT, _FLOAT32_LEAST = 2.0**128, 2.0**-126
_MOST_WORKERS = 2**16  # Each has a few Python objects of its own.
_TYPES = {
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  bool: 'True or False',
  tuple: 'numbers in parentheses',
}

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
  'topology',
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
  _check_types(config)
  _at_least(config, 'workers', 1, _MOST_WORKERS)
  for name in (
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
      _at_least(config, name, 0, _FLOAT32_LIMIT)
  for name, period in config.periods.items():
    if period is not None:
      _at_least(config, f'periods.{name}', 0)
  # States without a period of their own get a multiple of the parameters'.
  multiple = max(MULTIPLES.values())
  _at_least(config, 'periods.params', 0, _LIMIT // multiple)
  longest = max(multiple * config.periods.params, *(p or 0 for p in config.periods.values()))
  if longest * config.period_growth >= _LIMIT:
    raise UserError(
      f'period_growth is {config.period_growth!r}; expected less than {_LIMIT / longest:g}, as '
      f'there are periods of up to {longest} steps.'
    )
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
  for name in ('schedule.decay_fraction', 'inner.w'):
    if (value := option(config, name)) is not None and not 0 <= value <= 1:
      raise UserError(f'{name} is {value!r}; expected a share in [0, 1].')
  for name in PLAN_QUANTITIES:
    if not 0 < (value := option(config, name)) < math.inf:
      raise UserError(f'{name} is {value!r}; expected a finite number above 0.')
  if not 0 < config.plan.mfu <= 1:
    raise UserError(f'plan.mfu is {config.plan.mfu!r}; expected a share in (0, 1].')
  if not 0 < config.plan.share < 1:
    raise UserError(f'plan.share is {config.plan.share!r}; expected a share in (0, 1).')
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
  if config.topology:
    parse_topology(config.topology)
  weights = config.worker_weights
  if weights and not (len(weights) == config.workers and _are_weights(weights)):
    raise UserError(
      f'worker_weights is {tuple(weights)}; expected {config.workers} numbers >= 0, one for each '
      'worker, not all of them 0, that float32 can hold.'
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
  if (tokens := config.workers * batch_size * config.seq_len) >= _LIMIT:
    size = 'global_batch_size' if config.global_batch_size else 'workers * batch_size'
    raise UserError(f'{size} * seq_len is {tokens} tokens a step; expected less than {_LIMIT}.')
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
  # An option that the run did not know yet was what its default is now.
  defaults = {
    n: v for n, v in flatten(default_config()).items() if not n.startswith('data.sources.')
  }
  before = defaults | dict(before)
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
    hint = f', or permit it by --config.restore.allow={",".join(groups)}' if groups else ''
    raise UserError(
      f'the workdir holds a run of another config: {", ".join(changed[name] for name in refused)}. '
      f'Use another --workdir, or the config that it was made with{hint}.'
    )
  return changed


def allowed_names(config: config_dict.ConfigDict) -> list[str]:
  """Returns the parts of `restore.allow`."""
  return [name for name in map(str.strip, config.restore.allow.split(',')) if name]


def _check_types(config: config_dict.ConfigDict) -> None:
  """Checks that the options are there, each with a value of its type, and no others."""
  present = dict(_leaves(config))
  sources = {n.rpartition('.')[0] for n in present if n.startswith('data.sources.')}
  required = [name for name in OPTIONS if not name.startswith('data.sources.')]
  required += [f'{source}.path' for source in sources or ['data.sources.text']]
  if missing := [name for name in required if name not in present]:
    raise UserError(
      f'the config lacks {", ".join(missing)}; begin it with default_config() as configs/ do.'
    )
  for name, value in present.items():
    table_name = re.sub(r'^data\.sources\.[^.]*', 'data.sources.text', name)
    if table_name not in OPTIONS:
      raise unknown_choice('option', name, OPTIONS)
    default = OPTIONS[table_name][0]
    kind = default if isinstance(default, type) else type(default)
    if not _is_of_type(value, kind) and not (value is None and isinstance(default, type)):
      raise UserError(f'{name} is {_shown(value)}; expected {_TYPES[kind]}.')


def _leaves(node: Mapping[str, object], prefix: str = '') -> Iterator[tuple[str, object]]:
  for key, value in node.items():
    if isinstance(value, Mapping | config_dict.ConfigDict) and value:
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _is_of_type(value: object, kind: type) -> bool:
  if kind is tuple:
    is_number = lambda x: _is_of_type(x, int) or _is_of_type(x, float)
    return isinstance(value, tuple) and all(map(is_number, value))
  if kind is int and isinstance(value, int):  # Python's have no limit: their text may have one.
    return not isinstance(value, bool) and -(2**63) <= value < 2**63
  return isinstance(value, kind)


def _shown(value: object) -> str:
  try:
    return f'{value!r:.60}'
  except ValueError:
    return 'a number of thousands of digits'


def _at_least(config: config_dict.ConfigDict, name: str, least: int, limit: float = _LIMIT) -> None:
  value = option(config, name)
  if not least <= value < limit:
    raise UserError(f'{name} is {value!r}; expected a number >= {least}, below {limit}.')


def _are_weights(values: Sequence[float]) -> bool:
  return min(values) >= 0 and max(values) >= _FLOAT32_LEAST and sum(values) < _FLOAT32_LIMIT


def _divisors(number: int) -> str:
  small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
  return ', '.join(map(str, sorted({*small, *(number // d for d in small)})))
