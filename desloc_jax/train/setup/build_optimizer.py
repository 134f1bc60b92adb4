"""From a configuration to its optimizer: schedule, inner optimizer, periods and method."""

from collections.abc import Callable, Mapping
import functools
import math
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import optax

from desloc_jax.checkpoints.segment import Clock
from desloc_jax.errors import UserError
from desloc_jax.hosts.peers import peers
from desloc_jax.optimizer.control_variates import CONTROL
from desloc_jax.optimizer.fragments import Fragment, make_quantities
from desloc_jax.optimizer.health import HealthCheck
from desloc_jax.optimizer.inner import make_inner
from desloc_jax.optimizer.methods import make_method, METHODS, resolve_periods
from desloc_jax.optimizer.outer import make_outer, momentum_schedule, OUTER_OPTIMIZERS
from desloc_jax.optimizer.over_workers import AXIS_NAMES
from desloc_jax.optimizer.periods import (
  falls_on,
  growing_timetables,
  grown,
  Periods,
  Phased,
  Timetable,
)
from desloc_jax.optimizer.schedules import SCHEDULES
from desloc_jax.optimizer.state_fields import MODELS
from desloc_jax.optimizer.stepping import SteppingTransformation, with_arguments
from desloc_jax.optimizer.syncs import Sync
from desloc_jax.optimizer.worker_step.frame import CONSENSUS, HEALTH, RESTARTS
from desloc_jax.options.table import gossips, steps_by_name, with_presets
from desloc_jax.train.setup.build_fragments import make_fragments
from desloc_jax.train.setup.build_syncs import check_exemptions, make_syncs

# Parameter syncs to a publication of the consensus where workers gossip.
PUBLISHED = 4
# With fewer in a run a quantity is hardly averaged at all.
FEW_AVERAGES = 8


class Optimizer(NamedTuple):
  """A method with its parts."""

  schedule: optax.Schedule  # Of the learning rate.
  inner: optax.GradientTransformation
  periods: Periods  # Numbers, also where they grow.
  tx: SteppingTransformation  # Over `over_workers.AXIS_NAMES`; says what is sent, and when.
  tx_of_steps: SteppingTransformation  # What the step does: the same, or all but what is sent.
  quantities: Periods  # Of each that is averaged by itself: a field, or a fragment of one.


def make_optimizer(
  config: config_dict.ConfigDict, params_like: optax.Params, clock: Clock
) -> Optimizer:
  """Returns the optimizer of a run for parameters of these shapes.

  Raises:
    UserError: an option or a period is set that the method or the inner optimizer does not have.
  """
  schedule, inner = schedule_and_inner(config, clock)
  periods = _resolve_periods(config, inner, params_like, clock)
  syncs = make_syncs(config, periods)
  fragments = make_fragments(config, params_like, periods)
  if paper := METHODS[config.method].paper:
    logging.info("Method %s; its paper's: %s", config.method, paper)

  def make(option: str, behind: bool) -> SteppingTransformation:
    try:
      return make_transform(config, config.method, inner, periods, clock, syncs, behind, fragments)
    except ValueError as error:
      raise UserError(f'{option}: {error}') from error

  tx = steps = make('sync.delay', False)
  if config.sync.behind and not METHODS[config.method].gradients:
    steps = make('sync.behind', True)
    if config.health.check:
      logging.warning('sync.behind: the health check is off, as its vote would be waited for.')
  check_exemptions(config, tx, params_like)
  if config.sync.behind and peers().count == 1:
    logging.warning(
      'sync.behind: this process has all workers, so that no network is to be hidden: the step '
      'exchanges, and the results are the same.'
    )
    steps = tx
  found = make_quantities(periods, fragments, config.stochastic)
  quantities = {name: quantity.period for name, quantity in found.items()}
  return Optimizer(schedule, inner, periods, tx, steps, quantities)


def make_transform(
  config: config_dict.ConfigDict,
  method: str,
  inner: optax.GradientTransformation,
  periods: Periods,
  clock: Clock,
  syncs: Mapping[str, Sync] | None = None,
  behind: bool = False,
  fragments: Mapping[str, Fragment] | None = None,
) -> SteppingTransformation:
  """Returns the transformation of `method` with these periods and the other options of a run.

  Without `syncs` everything is averaged by the mean. `behind` and `fragments` are those of `desloc`.
  """
  tx = make_method(
    method,
    inner,
    scheduled_periods(periods, config, clock),
    AXIS_NAMES,
    outer=_make_outer(config, periods, clock) if METHODS[method].outer else None,
    timing=config.timing,
    coin_key=jax.random.key(config.seed) if config.stochastic else None,
    warmup_steps=config.sync_warmup_steps,
    health=_health_check(config, periods),
    guard=config.moment_guard,
    syncs=syncs,
    last_step=clock.last_step,
    behind=behind,
    fragments=fragments,
  )
  if config.worker_weights:
    weights = jnp.asarray(config.worker_weights, jnp.float32)
    tx = with_arguments(tx, weights=weights)
  return tx


def _make_outer(
  config: config_dict.ConfigDict, periods: Periods, clock: Clock
) -> optax.GradientTransformation:
  options = with_presets(config, 'outer')
  name = options.pop('name') or 'sgd'
  shares = [options.pop(f'momentum_{part}') for part in ('warmup', 'decay')]
  if any(shares):
    momentum = OUTER_OPTIMIZERS['sgd'].defaults['momentum']
    momentum = options['momentum'] if options['momentum'] is not None else momentum
    steps = syncs_of_run(periods, config, clock)['params']
    options['momentum'] = momentum_schedule(momentum, steps, *shares)
  try:
    return make_outer(name, **options)
  except ValueError as error:
    raise UserError(str(error)) from error


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


def schedule_and_inner(
  config: config_dict.ConfigDict, clock: Clock
) -> tuple[optax.Schedule, optax.GradientTransformation]:
  """Returns the learning rate's schedule and the inner optimizer that follows it.

  Raises:
    UserError: an option is set that the optimizer does not take.
  """
  schedule = SCHEDULES[config.schedule.name](
    config.inner.learning_rate,
    config.steps,
    config.schedule.warmup_steps,
    config.schedule.decay_fraction,
  )
  schedule = clock.follow(schedule)
  options = config.inner.to_dict() | {'learning_rate': schedule}
  options['name'] = METHODS[config.method].inner.get(config.inner.name, config.inner.name)
  options['control'] = METHODS[config.method].control
  try:
    return schedule, make_inner(**options)
  except ValueError as error:
    raise UserError(str(error)) from error


def _health_check(config: config_dict.ConfigDict, periods: Periods) -> HealthCheck | None:
  # One worker alone cannot be left out: that it is finite is checked where the loss is logged.
  if config.workers == 1 or periods['params'] is None:
    return None
  if config.sync.behind:  # Its vote would be waited for.
    return None
  if not config.health.check:
    # Who comes back restarts from the averages, with the check or without.
    comes_back = config.failures.away or config.failures.rate
    return HealthCheck(threshold=None) if comes_back and config.sync.who != 'tokens' else None
  options = config.health.to_dict()
  del options['check']
  return HealthCheck(**options | {'threshold': config.health.threshold or math.inf})


def _resolve_periods(config: config_dict.ConfigDict, inner, params_like, clock: Clock) -> Periods:
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
