"""From a configuration to its plan: memory, bytes and time, with nothing compiled and no data."""

from collections.abc import Mapping
import dataclasses
import functools
import math

import jax
from ml_collections import config_dict
import optax

from desloc_jax import model as model_lib
from desloc_jax.checkpoints.segment import BEGINNING, Clock, make_clock
from desloc_jax.data import load_tokenizer
from desloc_jax.errors import UserError
from desloc_jax.optimizer.methods import resolve_periods
from desloc_jax.optimizer.over_workers import AXIS_NAMES
from desloc_jax.optimizer.worker_step.frame import HEALTH, RESTARTS
from desloc_jax.options.batch import Batch
from desloc_jax.options.checks import check_config
from desloc_jax.options.values import model_config, with_presets
from desloc_jax.plan.memory import memory_bytes
from desloc_jax.plan.timing import compute_seconds, Link, step_time, StepTime, with_value_size
from desloc_jax.programs.ledger import EVERY_STEP, Ledger, transform_ledger
from desloc_jax.train.setup.build_optimizer import make_optimizer, make_transform
from desloc_jax.train.setup.build_periods import periods_change, sent_periods, syncs_of_run

COMPARED = ('ddp', 'local_adam', 'favg_opt', 'desloc')
_USUAL_DEVICES = 8  # Of one host.


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run as it would be.

  Attributes:
    config: of the run.
    clock: its steps and tokens.
    parameters: of the model.
    devices: that share a worker.
    memory: bytes a device, by what they are for.
    link: between workers.
    ledgers: by method, the configured one among them; sizes in bytes on the wire, periods those of
      the mean step of the run.
    periods: of the configured method's ledger, as they are at the start.
    times: of the mean step, by method.
  """

  config: config_dict.ConfigDict
  clock: Clock
  parameters: int
  devices: int
  memory: Mapping[str, float]
  link: Link
  ledgers: Mapping[str, Ledger]
  periods: Mapping[str, float]
  times: Mapping[str, StepTime]

  def days(self, method: str) -> float:
    """Returns the days that all steps of the run take."""
    return self.clock.last_step * self.times[method].total_s / 86_400


def make_plan(config: config_dict.ConfigDict) -> Plan:
  """Returns the plan of a run.

  Raises:
    UserError: the configuration cannot work.
  """
  check_config(config)
  clock = make_clock(config, BEGINNING)
  devices = _devices_per_worker(config, clock.batch)
  model = model_config(config, vocabulary_size(config))
  model = dataclasses.replace(model, seq_len=config.seq_len)
  params_like = jax.eval_shape(functools.partial(model_lib.init_params, model), jax.random.key(0))
  tx, start = _ledgers(config, params_like, clock)
  options = config.plan
  link = Link(options.bandwidth_gbps * 1e9 / 8, options.latency_ms / 1e3)
  flops = model_lib.flops_per_token(model) * clock.batch.tokens / config.workers
  ledgers = {name: _over_the_run(ledger, config, clock) for name, ledger in start.items()}
  compute_s = compute_seconds(flops, devices, options.peak_tflops * 1e12, options.mfu)
  return Plan(
    config=config,
    clock=clock,
    parameters=model_lib.parameter_count(model),
    devices=devices,
    memory=memory_bytes(model, params_like, tx, clock.batch, devices),
    link=link,
    ledgers=ledgers,
    periods=start[config.method].periods,
    times={
      name: step_time(
        ledger, link, compute_s, options.overlap, _behind(config) if name == config.method else 0
      )
      for name, ledger in ledgers.items()
    },
  )


def _behind(config: config_dict.ConfigDict) -> int:
  """Returns the steps that are made while a sync is on its way: one less than its delay.

  It is there before the step that lands it begins.
  """
  delay = with_presets(config, 'sync')['delay'] or 0
  return max(0, delay - 1) if config.sync.behind else 0


def vocabulary_size(config: config_dict.ConfigDict) -> int:
  """Returns the size of the embedding, or of the tokenizer's vocabulary if that decides it."""
  # With a size of its own the embedding needs no tokenizer, whose file may be elsewhere.
  return (
    config.model.vocab_size
    or load_tokenizer(config.data.tokenizer, config.data.end_of_document).vocab_size
  )


def _devices_per_worker(config: config_dict.ConfigDict, batch: Batch) -> int:
  devices = config.plan.devices_per_worker or config.mesh.fsdp
  if devices == 0:
    return math.gcd(batch.sequences, _USUAL_DEVICES)
  if batch.sequences % devices:
    raise UserError(
      f'batch_size / accumulation is {batch.sequences}, which {devices} devices of a worker '
      '(plan.devices_per_worker, or mesh.fsdp) cannot share evenly.'
    )
  return devices


def _ledgers(
  config: config_dict.ConfigDict, params_like: optax.Params, clock: Clock
) -> tuple[optax.GradientTransformation, dict[str, Ledger]]:
  """Returns the run's transformation, and by method what it and the compared ones send.

  Those take the run's inner optimizer and K_x, and the paper's periods for the moments.
  """
  optimizer = make_optimizer(config, params_like, clock)

  def read(tx, periods):
    ledger = transform_ledger(tx, params_like, sent_periods(periods), config.workers, AXIS_NAMES)
    return with_value_size(ledger, config.plan.bytes_per_value)

  ledgers = {}
  for method in dict.fromkeys((*COMPARED, config.method)):
    if method == config.method:
      ledgers[method] = read(optimizer.tx, optimizer.quantities)
      continue
    requested = {'params': config.periods.params}
    periods = resolve_periods(method, optimizer.inner, params_like, requested)
    tx = make_transform(config, method, optimizer.inner, periods, clock)
    ledgers[method] = read(tx, periods)
  return optimizer.tx, ledgers


def _over_the_run(ledger: Ledger, config: config_dict.ConfigDict, clock: Clock) -> Ledger:
  """Returns a ledger with the mean periods of the run, where they grow or it has a warm-up."""
  if not periods_change(config) and not config.sync_warmup_steps:
    return ledger
  averaged = {
    name: None if period == math.inf else period
    for name, period in ledger.periods.items()
    if name not in (HEALTH, RESTARTS, EVERY_STEP)
  }
  syncs = syncs_of_run(averaged, config, clock)
  periods = {name: clock.last_step / n if n else math.inf for name, n in syncs.items()}
  if HEALTH in ledger.periods:
    periods |= {HEALTH: min(periods.values(), default=math.inf), RESTARTS: math.inf}
  return dataclasses.replace(ledger, periods=dict(ledger.periods) | periods)
