"""Refuses configurations that cannot work, before anything is compiled."""

from collections.abc import Iterator, Mapping, Sequence
import math
import re

from ml_collections import config_dict

from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.optimizer.inner import REFUSED
from desloc_jax.optimizer.methods import METHODS, MULTIPLES
from desloc_jax.optimizer.outer import find_outer
from desloc_jax.options.batch import batch_of
from desloc_jax.options.changes import allowed_words
from desloc_jax.options.groups import parse_groups
from desloc_jax.options.profile_steps import parse_steps
from desloc_jax.options.table import ALLOWABLE, find_row, OPTIONS
from desloc_jax.options.topology import parse_topology
from desloc_jax.options.values import steps_by_name
from desloc_jax.options.worker_failures import parse_attacks, parse_away
from desloc_jax.valid import check_value, FLOAT32_LIMIT, LIMIT

_FLOAT32_LEAST = 2.0**-126


def check_config(config: config_dict.ConfigDict) -> None:
  """Checks every value that can be checked without data or devices.

  Raises:
    UserError: names the option, its value and what would be valid.
  """
  _check_options(config)
  _check_periods(config)
  _check_texts(config)
  _check_weights(config)
  _check_sizes(config)


def _check_options(config: config_dict.ConfigDict) -> None:
  """Checks that the options are there, each with a value that its row takes, and no others."""
  present = dict(_leaves(config))
  sources = {n.rpartition('.')[0] for n in present if n.startswith('data.sources.')}
  required = [name for name in OPTIONS if not name.startswith('data.sources.')]
  required += [f'{source}.path' for source in sources or ['data.sources.text']]
  if missing := [name for name in required if name not in present]:
    raise UserError(
      f'the config lacks {", ".join(missing)}; begin it with default_config() as configs/ do.'
    )
  if (optimizer := present['inner.name']) in REFUSED:
    raise UserError(f'inner.name {optimizer!r} is not supported: {REFUSED[optimizer]}.')
  for name, value in present.items():
    row = find_row(name)
    if row is None:
      raise unknown_choice('option', name, OPTIONS, listed_by='--help')
    if value is not None or not row.may_be_unset:
      check_value(name, value, row.kind, row.valid)


def _leaves(node: Mapping[str, object], prefix: str = '') -> Iterator[tuple[str, object]]:
  for key, value in node.items():
    if isinstance(value, Mapping | config_dict.ConfigDict) and value:
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _check_periods(config: config_dict.ConfigDict) -> None:
  # States without a period of their own get a multiple of the parameters'.
  longest = max(
    max(MULTIPLES.values()) * config.periods.params,
    *(p or 0 for p in steps_by_name(config).values()),
  )
  if config.sync_end_steps > config.steps:
    raise UserError(
      f'sync_end_steps is {config.sync_end_steps}; expected at most steps ({config.steps}).'
    )
  if config.sync_end_steps and METHODS[config.method].outer:
    raise UserError(
      f'sync_end_steps is {config.sync_end_steps}, but method {config.method!r} has an outer '
      'optimizer, which would take a step at each of them where an average is meant; expected 0.'
    )
  if longest * config.period_growth >= LIMIT:
    raise UserError(
      f'period_growth is {config.period_growth!r}; expected less than {LIMIT / longest:g}, as '
      f'there are periods of up to {longest} steps.'
    )


def _check_texts(config: config_dict.ConfigDict) -> None:
  """Checks the options that are written in a form of their own."""
  parse_away(config.failures.away, config.workers)
  parse_attacks(config.failures.attack, config.workers)
  parse_steps(config.profile.steps)
  parse_groups(config.periods.groups)
  if config.outer.name:  # Also where the method has no outer optimizer.
    try:
      find_outer(config.outer.name)
    except ValueError as error:
      raise UserError(str(error)) from error
  if config.topology:
    parse_topology(config.topology)
  try:
    re.compile(config.sync.exempt)
  except re.error as error:
    raise UserError(
      f'sync.exempt is {config.sync.exempt!r}, no regular expression: {error}.'
    ) from error
  for word in allowed_words(config):
    if word not in ALLOWABLE:
      raise unknown_choice('restore.allow', word, ALLOWABLE)


def _check_weights(config: config_dict.ConfigDict) -> None:
  weights = config.worker_weights
  if weights and not (len(weights) == config.workers and _are_weights(weights)):
    raise UserError(
      f'worker_weights is {tuple(weights)}; expected {config.workers} numbers >= 0, one for each '
      'worker, not all of them 0, that float32 can hold.'
    )


def _are_weights(values: Sequence[float]) -> bool:
  return min(values) >= 0 and max(values) >= _FLOAT32_LEAST and sum(values) < FLOAT32_LIMIT


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
  batch = batch_of(config)
  if batch.worker_sequences % batch.micro_batches:
    raise UserError(
      f'accumulation is {config.accumulation}, which does not divide the '
      f'{batch.worker_sequences} sequences of a worker. Valid: {_divisors(batch.worker_sequences)}.'
    )
  if batch.tokens >= LIMIT:
    size = 'global_batch_size' if config.global_batch_size else 'workers * batch_size'
    raise UserError(
      f'{size} * seq_len is {batch.tokens} tokens a step; expected less than {LIMIT}.'
    )
  if config.seq_len > config.model.seq_len:
    raise UserError(
      f'seq_len is {config.seq_len}, longer than the model takes '
      f'(model.seq_len is {config.model.seq_len}).'
    )


def _divisors(number: int) -> str:
  small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
  return ', '.join(map(str, sorted({*small, *(number // d for d in small)})))
