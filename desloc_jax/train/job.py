"""From a configuration to all that a run needs: data, model, transform, mesh, compiled step."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from ml_collections import config_dict
import optax

from desloc_jax import data as data_lib, model as model_lib
from desloc_jax.errors import UserError
from desloc_jax.optimizer.ddp import ddp
from desloc_jax.optimizer.hlo import read_collectives
from desloc_jax.optimizer.inner import make_inner
from desloc_jax.optimizer.ledger import Ledger, read_ledger, transform_ledger
from desloc_jax.optimizer.methods import make_method, METHODS, resolve_periods
from desloc_jax.optimizer.over_workers import AXIS_NAMES
from desloc_jax.optimizer.periods import Periods
from desloc_jax.optimizer.schedules import SCHEDULES
from desloc_jax.optimizer.transform import desloc
from desloc_jax.train import config as config_lib, mesh as mesh_lib
from desloc_jax.train.step import (
  finite_workers,
  init_state,
  make_eval_step,
  make_train_step,
  STATE_AXES,
  TrainState,
)

Sources = list[tuple[data_lib.SourceSpec, data_lib.PackedSequences]]


@dataclasses.dataclass(frozen=True)
class Data:
  """The sources of both splits and the tokenizer that they share."""

  tokenizer: data_lib.Tokenizer
  train: Sources
  validation: Sources

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of all that the data streams depend on besides the config."""
    return data_lib.fingerprint(self.train + self.validation)

  @property
  def tokens_per_byte(self) -> float:
    """Of the held-out text: nats per token / ln 2 * this = bits per byte."""
    sources = [source for _, source in self.validation]
    return sum(s.tokens for s in sources) / sum(s.text_bytes for s in sources)


@dataclasses.dataclass(frozen=True)
class Job:
  """A run, ready to be stepped. Nothing in it changes while it runs."""

  config: config_dict.ConfigDict
  data: Data
  stream: data_lib.TrainingStream
  validation: Iterable  # Of tokens and mask, see `data.validation_batches`.
  model: model_lib.GPTConfig
  mesh: Mesh
  periods: Periods
  parameters: int
  make_state: Callable[[], TrainState]  # Compiled: the state before the first step.
  state_like: TrainState  # Shapes, dtypes and shardings.
  tokens_like: jax.ShapeDtypeStruct  # int32 [workers, micro-batches, sequences, seq_len + 1].
  train_step: Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, Any]]]  # Compiled.
  eval_step: Callable[..., jax.Array]
  finite: Callable[[TrainState], jax.Array]  # Boolean [workers].
  ledger: Ledger
  ddp_ledger: Ledger
  local_adam_ledger: Ledger
  compile_s: float

  @property
  def tokens_per_step(self) -> int:
    config = self.config
    return config.workers * config.batch_size * config.seq_len


def load_data(config: config_dict.ConfigDict) -> Data:
  """Opens all sources of a configuration.

  Raises:
    UserError: a source or the tokenizer cannot be used, or has no data for a split.
  """
  tokenizer = data_lib.load_tokenizer(config.data.tokenizer)
  specs = [data_lib.SourceSpec(name=name, **source) for name, source in config.data.sources.items()]

  def open_split(split: str) -> Sources:
    return [
      (
        spec,
        data_lib.open_source(
          spec.path, tokenizer, split, config.seq_len, config.data.validation_fraction, spec.where
        ),
      )
      for spec in specs
    ]

  return Data(tokenizer, open_split('train'), open_split('validation'))


def make_job(config: config_dict.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Job:
  """Checks a configuration, loads its data and compiles its training step for `devices` (all).

  Raises:
    UserError: the configuration cannot work; raised before anything is compiled.
  """
  config_lib.check_config(config)
  mesh = mesh_lib.make_mesh(config.workers, config.mesh.fsdp, devices)
  micro_batch = config.batch_size // config.accumulation
  if micro_batch % mesh.shape[mesh_lib.FSDP]:
    raise UserError(
      f'batch_size / accumulation is {micro_batch}, which mesh.fsdp={mesh.shape[mesh_lib.FSDP]} '
      'devices of a worker cannot share evenly.'
    )
  data = load_data(config)
  stream = data_lib.TrainingStream(
    data.train, workers=config.workers, batch_size=config.batch_size, seed=config.seed
  )
  validation = data_lib.validation_batches(
    data.validation, config.workers, micro_batch, config.eval.sequences or None
  )
  model = config_lib.model_config(config, data.tokenizer.vocab_size)

  init_params = functools.partial(model_lib.init_params, model)
  params_like = jax.eval_shape(init_params, jax.random.key(0))
  schedule, inner = schedule_and_inner(config)
  periods = _periods(config, inner, params_like)
  tx = make_method(
    config.method,
    inner,
    _scheduled(periods, config),
    AXIS_NAMES,
    outer=optax.sgd(**config.outer.to_dict()),
    timing=config.timing,
    coin_key=jax.random.key(config.seed) if config.stochastic else None,
    warmup_steps=config.sync_warmup_steps,
  )
  if config.worker_weights:
    weights = jnp.asarray(config.worker_weights, jnp.float32)
    tx = optax.GradientTransformationExtraArgs(
      tx.init, functools.partial(tx.update, weights=weights)
    )

  new_state = functools.partial(
    init_state, init_params, tx, config.workers, jax.random.key(config.seed)
  )
  state_like = jax.eval_shape(new_state)
  state_shardings = mesh_lib.shardings(mesh, state_like, STATE_AXES)
  state_like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state_like, state_shardings
  )
  tokens_like = jax.ShapeDtypeStruct(
    (config.workers, config.accumulation, micro_batch, config.seq_len + 1),
    jnp.int32,
    sharding=NamedSharding(mesh, P(mesh_lib.WORKERS, None, mesh_lib.FSDP)),
  )
  loss = functools.partial(model_lib.next_token_loss, config=model)
  step = make_train_step(loss, tx, schedule, mesh)
  ledger = read_ledger(jax.make_jaxpr(step)(state_like, tokens_like), periods, config.workers)

  start = time.perf_counter()
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))
  compiled = jitted.lower(state_like, tokens_like).compile()
  compile_s = time.perf_counter() - start
  _check_compiled(config, mesh, compiled)

  all_periods = dict.fromkeys(periods, config.periods.params or 1)
  return Job(
    config=config,
    data=data,
    stream=stream,
    validation=validation,
    model=model,
    mesh=mesh,
    periods=periods,
    parameters=sum(x.size for x in jax.tree.leaves(params_like)),
    make_state=jax.jit(new_state, out_shardings=state_shardings),
    state_like=state_like,
    tokens_like=tokens_like,
    train_step=compiled,
    finite=jax.jit(finite_workers),
    eval_step=make_eval_step(functools.partial(model_lib.sequence_losses, config=model), mesh),
    ledger=ledger,
    ddp_ledger=transform_ledger(ddp(inner), params_like, {}, config.workers),
    local_adam_ledger=transform_ledger(
      desloc(inner, all_periods), params_like, all_periods, config.workers
    ),
    compile_s=compile_s,
  )


def schedule_and_inner(
  config: config_dict.ConfigDict,
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
  options = config.inner.to_dict() | {'learning_rate': schedule}
  options['name'] = METHODS[config.method].inner.get(config.inner.name, config.inner.name)
  try:
    return schedule, make_inner(**options)
  except ValueError as error:
    raise UserError(str(error)) from error


def _periods(config: config_dict.ConfigDict, inner, params_like) -> Periods:
  requested = {name: value for name, value in config.periods.items() if value is not None}
  try:
    periods = resolve_periods(config.method, inner, params_like, requested)
  except ValueError as error:
    raise UserError(str(error)) from error
  for name, period in periods.items():
    if period is not None and period > config.steps - (config.timing == 'pre'):
      logging.warning(
        'periods.%s is %d in a run of %d steps: %s will never be averaged.',
        name,
        period,
        config.steps,
        name,
      )
  return periods


def _scheduled(periods: Periods, config: config_dict.ConfigDict) -> Periods:
  """Returns `periods` growing linearly to `period_growth` times themselves over the run."""
  growth, steps = config.period_growth, config.steps
  if growth == 1:
    return periods

  def grow(period: int):
    return lambda step: jnp.round(period * (1 + (growth - 1) * step / steps)).astype(jnp.int32)

  return {name: period and grow(period) for name, period in periods.items()}


def _check_compiled(
  config: config_dict.ConfigDict, mesh: Mesh, compiled: jax.stages.Compiled
) -> None:
  """Warns of collectives between workers that XLA put into every step by itself."""
  if mesh.shape[mesh_lib.WORKERS] == 1 or METHODS[config.method].gradients:
    return
  worker_of_device = [i // mesh.shape[mesh_lib.FSDP] for i in range(mesh.size)]
  for collective in read_collectives(compiled.as_text()):
    if not collective.conditional and collective.crosses(worker_of_device):
      logging.warning(
        'Every step has an %s of %d bytes between workers, which the ledger does not count.',
        collective.opcode,
        collective.result_bytes,
      )
