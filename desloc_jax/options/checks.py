"""Refuses configurations that cannot work, before anything is compiled."""

from collections.abc import Sequence
import math
import re

from ml_collections import config_dict

from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.optimizer.inner import INNER_OPTIMIZERS, REFUSED
from desloc_jax.optimizer.methods import METHODS, MULTIPLES
from desloc_jax.optimizer.schedules import SCHEDULES
from desloc_jax.optimizer.syncs import SYNCS
from desloc_jax.optimizer.transform import TIMINGS
from desloc_jax.options.changes import allowed_names
from desloc_jax.options.failures import parse_away
from desloc_jax.options.table import ALLOWABLE, FIELDS, option, worker_batch_size
from desloc_jax.options.topology import parse_topology
from desloc_jax.options.types import check_types

_LIMIT = 2**31  # Of the integers that steps and sizes are counted in on devices.
_FLOAT32_LIMIT, _FLOAT32_LEAST = 2.0**128, 2.0**-126
_MOST_WORKERS = 2**16  # Each has a few Python objects of its own.

# (the least that a value may be, what it must be below): options.
_RANGES = {
  (1, _MOST_WORKERS): ('workers',),
  (1, _LIMIT): (
    'batch_size', 'accumulation', 'seq_len', 'steps', 'log_every', 'checkpoint.keep',
    'period_growth', 'failures.steps', 'stop_at', 'processes.start_timeout_s',
    'processes.heartbeat_timeout_s', 'sync.block', 'sync.keep', 'sync.chunk',
  ),
  (0, _LIMIT): (
    'seed', 'global_batch_size', 'health.warmup_syncs', 'mesh.fsdp', 'eval.every',
    'eval.sequences', 'checkpoint.every', 'model.vocab_size', 'schedule.warmup_steps',
    'sync_warmup_steps', 'plan.devices_per_worker', 'processes.stuck_timeout_s',
  ),
  (0, _FLOAT32_LIMIT): (
    'inner.learning_rate', 'inner.eps', 'inner.eps_root', 'inner.alpha', 'inner.clip_norm',
    'inner.clip_value', 'sync.eta', 'inner.weight_decay', 'outer.learning_rate', 'plan.latency_ms',
  ),
}  # fmt: skip
# What is expected, in words and as a condition, of which options.
_EXPECTED = (
  ('a number in [0, 1)', lambda x: 0 <= x < 1, (
    'inner.b1', 'inner.b2', 'inner.b3', 'inner.momentum', 'outer.momentum',
    'data.validation_fraction', 'health.decay', 'failures.rate', 'plan.overlap',
  )),
  ('a share in [0, 1]', lambda x: 0 <= x <= 1, (
    'schedule.decay_fraction', 'inner.w', 'sync.decay',
  )),
  ('a finite number above 0', lambda x: 0 < x < math.inf, (
    'plan.bandwidth_gbps', 'plan.bytes_per_value', 'plan.peak_tflops', 'plan.memory_gb',
  )),
  ('a share in (0, 1]', lambda x: 0 < x <= 1, ('plan.mfu', 'plan.memory_fraction')),
  ('a share in (0, 1)', lambda x: 0 < x < 1, ('plan.share',)),
  ('0, or a finite number above 1', lambda x: x == 0 or 1 < x < math.inf, ('health.threshold',)),
)  # fmt: skip
_CHOICES = {
  'method': METHODS,
  'inner.name': INNER_OPTIMIZERS,
  'schedule.name': SCHEDULES,
  'timing': TIMINGS,
  'schedule.unit': ('steps', 'tokens'),
  'sync.params': SYNCS,
  'sync.moments': SYNCS,
  'data.on_bad': ('error', 'skip'),
}


def check_config(config: config_dict.ConfigDict) -> None:
  """Checks every value that can be checked without data or devices.

  Raises:
    UserError: names the option, its value and what would be valid.
  """
  check_types(config)
  for (least, limit), names in _RANGES.items():
    for name in names:
      _check_range(config, name, least, limit)
  _check_periods(config)
  for expected, fits, names in _EXPECTED:
    for name in names:
      if (value := option(config, name)) is not None and not fits(value):
        raise UserError(f'{name} is {value!r}; expected {expected}.')
  _check_choices(config)
  parse_away(config.failures.away, config.workers)
  if config.topology:
    parse_topology(config.topology)
  _check_weights(config)
  _check_sizes(config)


def _check_range(
  config: config_dict.ConfigDict, name: str, least: int, limit: float = _LIMIT
) -> None:
  value = option(config, name)
  if value is not None and not least <= value < limit:
    raise UserError(f'{name} is {value!r}; expected a number >= {least}, below {limit}.')


def _check_periods(config: config_dict.ConfigDict) -> None:
  for name in config.periods:
    _check_range(config, f'periods.{name}', 0)
  # States without a period of their own get a multiple of the parameters'.
  multiple = max(MULTIPLES.values())
  _check_range(config, 'periods.params', 0, _LIMIT // multiple)
  longest = max(multiple * config.periods.params, *(p or 0 for p in config.periods.values()))
  if longest * config.period_growth >= _LIMIT:
    raise UserError(
      f'period_growth is {config.period_growth!r}; expected less than {_LIMIT / longest:g}, as '
      f'there are periods of up to {longest} steps.'
    )


def _check_choices(config: config_dict.ConfigDict) -> None:
  if (name := config.inner.name) in REFUSED:
    raise UserError(f'inner.name {name!r} is not supported: {REFUSED[name]}.')
  for name, choices in _CHOICES.items():
    if option(config, name) not in choices:
      raise unknown_choice(name, option(config, name), choices)
  for name in FIELDS:
    if (sync := config.sync[name]) is not None and sync not in SYNCS:
      raise unknown_choice(f'sync.{name}', sync, SYNCS)
  try:
    re.compile(config.sync.exempt)
  except re.error as error:
    raise UserError(
      f'sync.exempt is {config.sync.exempt!r}, no regular expression: {error}.'
    ) from error
  for name in allowed_names(config):
    if name not in ALLOWABLE:
      raise unknown_choice('restore.allow', name, ALLOWABLE)


def _check_weights(config: config_dict.ConfigDict) -> None:
  weights = config.worker_weights
  if weights and not (len(weights) == config.workers and _are_weights(weights)):
    raise UserError(
      f'worker_weights is {tuple(weights)}; expected {config.workers} numbers >= 0, one for each '
      'worker, not all of them 0, that float32 can hold.'
    )


def _are_weights(values: Sequence[float]) -> bool:
  return min(values) >= 0 and max(values) >= _FLOAT32_LEAST and sum(values) < _FLOAT32_LIMIT


def _check_sizes(config: config_dict.ConfigDict) -> None:
  """Checks the sizes that have to fit each other: of the run, the batch and the model."""
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


def _divisors(number: int) -> str:
  small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
  return ', '.join(map(str, sorted({*small, *(number // d for d in small)})))
