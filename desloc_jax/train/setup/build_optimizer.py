"""From a configuration to its optimizer: schedule, inner and outer optimizer, and method."""

from collections.abc import Mapping
import math
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import optax

from desloc_jax.checkpoints.segment import Clock
from desloc_jax.errors import UserError
from desloc_jax.hosts.peers import peers
from desloc_jax.optimizer.fragments import Fragment, make_quantities
from desloc_jax.optimizer.health import HealthCheck
from desloc_jax.optimizer.inner import make_inner
from desloc_jax.optimizer.methods import make_method, METHODS
from desloc_jax.optimizer.outer import make_outer, momentum_schedule, OUTER_OPTIMIZERS
from desloc_jax.optimizer.over_workers import AXIS_NAMES
from desloc_jax.optimizer.schedules import SCHEDULES
from desloc_jax.optimizer.stepping import SteppingTransformation, with_arguments
from desloc_jax.optimizer.sync_periods import Periods
from desloc_jax.optimizer.syncs import Sync
from desloc_jax.options.values import with_presets
from desloc_jax.train.setup.build_fragments import make_fragments
from desloc_jax.train.setup.build_periods import periods_of_run, scheduled_periods, syncs_of_run
from desloc_jax.train.setup.build_syncs import check_exemptions, make_syncs


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
  periods = periods_of_run(config, inner, params_like, clock)
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
