"""From a configuration to its periods: what is averaged how often, and how often in a run."""

from collections.abc import Callable, Mapping
import functools
import math

from absl import logging
from ml_collections import config_dict
import numpy as np
import optax

from desloc_jax.checkpoints.segment import Clock
from desloc_jax.errors import UserError
from desloc_jax.optimizer.control_variates import CONTROL
from desloc_jax.optimizer.methods import METHODS, resolve_periods
from desloc_jax.optimizer.state_fields import MODELS
from desloc_jax.optimizer.sync_periods import (
  falls_on,
  growing_timetables,
  grown,
  Periods,
  Phased,
  Timetable,
)
from desloc_jax.optimizer.worker_step.frame import CONSENSUS, HEALTH, RESTARTS
from desloc_jax.options.values import gossips, steps_by_name

# Parameter syncs to a publication of the consensus where workers gossip.
PUBLISHED = 4
# With fewer in a run a quantity is hardly averaged at all.
FEW_AVERAGES = 8


def periods_of_run(
  config: config_dict.ConfigDict,
  inner: optax.GradientTransformation,
  params_like: optax.Params,
  clock: Clock,
) -> Periods:
  """Returns the steps between averages of each quantity, numbers; None: it is never averaged.

  Raises:
    UserError: a period is set that the method or the inner optimizer does not have.
  """
  requested = {name: value for name, value in steps_by_name(config).items() if value is not None}
  published = requested.pop(CONSENSUS, PUBLISHED * config.periods.params)
  if gossips(config):
    requested[CONSENSUS] = published
  if METHODS[config.method].merges_once:
    if config.timing == 'pre' or config.stochastic or config.period_growth != 1:
      raise UserError(
        f'method {config.method!r} averages once, after the last step: timing is to be post, '
        'stochastic False and period_growth 1.'
      )
    requested['params'] = clock.last_step
  try:
    periods = resolve_periods(config.method, inner, params_like, requested)
  except ValueError as error:
    raise UserError(str(error)) from error
  averaged = {
    n: p for n, p in periods.items() if n != CONSENSUS and not METHODS[config.method].merges_once
  }
  _warn_of_few_averages(averaged, syncs_of_run(periods, config, clock), clock.last_step)
  moments = {name: period for name, period in periods.items() if name not in {*MODELS, CONTROL}}
  apart = len(set(moments.values())) > 1 or (config.stochastic and any(moments.values()))
  if not config.moment_guard and apart:
    logging.warning(
      'moment_guard is off and the moments are averaged at different steps (%s): where one worker '
      'alone has a gradient, steps of Adam may explode.',
      ', '.join(f'{name} every {period or "never"}' for name, period in moments.items()),
    )
  return periods


def _warn_of_few_averages(periods: Periods, counts: Mapping[str, float], steps: int) -> None:
  for name, period in periods.items():
    if period is not None and (count := int(counts[name])) < FEW_AVERAGES:
      logging.warning(
        'In %d steps %s is averaged %s: periods.%s is %d. %s',
        steps,
        name,
        {0: 'never', 1: 'once'}.get(count, f'{count} times'),
        name,
        period,
        f'A period of {steps // FEW_AVERAGES} makes it {FEW_AVERAGES} times.'
        if steps >= FEW_AVERAGES
        else f'{FEW_AVERAGES} times need a longer run.',
      )


def scheduled_periods(periods: Periods, config: config_dict.ConfigDict, clock: Clock) -> Periods:
  """Returns `periods` growing linearly to `period_growth` times themselves over the run.

  That of the parameters is one in the last `sync_end_steps`. A run ends with a consensus: where that
  has a period of its own it is published after the last step too.
  """
  growth, steps, last = config.period_growth, config.steps, clock.last_step
  dense = {'params': last - config.sync_end_steps} if config.sync_end_steps else {}
  dense |= {CONSENSUS: last - 1} if periods.get(CONSENSUS) else {}
  if growth == 1 and not dense:
    return periods
  if config.stochastic:
    at = lambda name: {'dense_after': dense[name]} if name in dense else {}
    return {
      name: period and functools.partial(grown, period, growth, steps, **at(name))
      for name, period in periods.items()
    }
  try:
    tables = growing_timetables(periods, growth, steps, last)
  except ValueError as error:
    raise UserError(f'period_growth: {error}') from error
  return tables | {
    name: tables[name] and tables[name].dense(after, last) for name, after in dense.items()
  }


def periods_change(config: config_dict.ConfigDict) -> bool:
  """Whether periods are others at some times of a run than at others, after its warm-up."""
  return config.period_growth != 1 or config.sync_end_steps > 0


def syncs_of_run(
  periods: Periods, config: config_dict.ConfigDict, clock: Clock
) -> dict[str, float]:
  """Returns how often each quantity is averaged in the whole run; with coins, how often to expect.

  With all workers there, as `scheduled_periods` and the warm-up have it.
  """
  last, pre = clock.last_step, config.timing == 'pre'
  warmup = min(config.sync_warmup_steps, last)
  # Steps after which the last average of the warm-up came, and any one may come at all.
  begin, end = max(0, warmup - pre), last - pre

  def count(period: int | Timetable | None) -> int:
    if period is None or end <= begin:
      return 0
    if isinstance(period, Timetable | Phased):
      return int(period.count(end) - period.count(begin))
    return (end - begin) // period

  def expected(period: int | Callable | None) -> float:
    """Returns the sum of the coins' chances; of some of many steps."""
    if period is None or last <= warmup:
      return 0.0
    steps = np.linspace(warmup, last - 1, min(last - warmup, 2**16))
    return (last - warmup) * float(np.mean(1 / (period(steps) if callable(period) else period)))

  of_one = expected if config.stochastic else count
  scheduled = scheduled_periods(periods, config, clock)
  return {name: warmup + of_one(period) for name, period in scheduled.items()}


def sent_periods(periods: Periods) -> Periods:
  """Returns `periods`, which are numbers, with those of what a health check sends beside."""
  return periods | {HEALTH: _period_of_any(periods), RESTARTS: None}


def _period_of_any(periods: Periods) -> float | None:
  """Returns the mean number of steps between those in which anything is averaged."""
  numbers = [period for period in periods.values() if period is not None]
  if not numbers:
    return None
  # Over a common multiple, or long enough.
  steps = np.arange(1, min(math.lcm(*numbers), 2**20) + 1)
  syncs = np.any([falls_on(period, steps) for period in numbers], axis=0).sum()
  return len(steps) / syncs if syncs else float(min(numbers))
