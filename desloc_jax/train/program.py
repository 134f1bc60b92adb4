"""The training step of a run with all that it is compiled for: it needs no data and no device."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from ml_collections import config_dict
import optax

from desloc_jax import model as model_lib
from desloc_jax.checkpoints.segment import Clock
from desloc_jax.checkpoints.train_state import STATE_AXES, TrainState
from desloc_jax.errors import UserError
from desloc_jax.optimizer.control_variates import CONTROL
from desloc_jax.optimizer.ddp import ddp
from desloc_jax.optimizer.sync_periods import Periods
from desloc_jax.optimizer.transform import desloc
from desloc_jax.optimizer.worker_step.frame import CONSENSUS
from desloc_jax.options.batch import Batch
from desloc_jax.options.values import model_config
from desloc_jax.options.worker_failures import active_workers
from desloc_jax.programs.ledger import Ledger, transform_ledger
from desloc_jax.train.setup import mesh as mesh_lib
from desloc_jax.train.setup.build_optimizer import make_optimizer, Optimizer
from desloc_jax.train.step import init_state, local_mean, make_eval_step, make_train_step

# Else XLA gathers small weights by sums of whole ones over many chips, at twice the bytes.
_TPU_OPTIONS = {'xla_tpu_prefer_async_allgather_to_allreduce': True}


@dataclasses.dataclass(frozen=True)
class Program:
  """A training step before it is compiled.

  Attributes:
    config: of the run.
    model: what is trained.
    mesh: the devices.
    batch: what a step takes.
    params_like: shapes of the parameters of one worker.
    optimizer: the method with its parts.
    state_of: to be jitted, the state before the first step of a model.
    new_state: to be jitted, that of a random model.
    state_like: its shapes, dtypes and shardings.
    tokens_like: int32 `batch.shape`.
    active_like: boolean [workers], where workers come and go.
    step: see `make_train_step`.
  """

  config: config_dict.ConfigDict
  model: model_lib.GPTConfig
  mesh: Mesh
  batch: Batch
  params_like: optax.Params
  optimizer: Optimizer
  state_of: Callable[[optax.Params], TrainState]
  new_state: Callable[[], TrainState]
  state_like: TrainState
  tokens_like: jax.ShapeDtypeStruct
  active_like: jax.ShapeDtypeStruct | None
  step: Callable[..., tuple[TrainState, dict[str, Any]]]

  @property
  def parameters(self) -> int:
    """Number of parameters of the model."""
    return sum(x.size for x in jax.tree.leaves(self.params_like))

  @property
  def shardings(self) -> TrainState:
    """Where the state lives."""
    return jax.tree.map(lambda x: x.sharding, self.state_like)

  @functools.cached_property
  def ddp_ledger(self) -> Ledger:
    """What DDP sends for the same model."""
    return self._ledger_of(ddp(self.optimizer.inner), {})

  @functools.cached_property
  def local_adam_ledger(self) -> Ledger:
    """What Local Adam sends: everything at each average of the parameters."""
    periods = dict.fromkeys(self.optimizer.periods, self.config.periods.params or 1)
    periods.pop(CONSENSUS, None)
    periods |= {name: None for name in periods if name == CONTROL}
    return self._ledger_of(desloc(self.optimizer.inner, periods), periods)

  def _ledger_of(self, tx: optax.GradientTransformation, periods: Periods) -> Ledger:
    platform = mesh_lib.platform(self.mesh)
    return transform_ledger(tx, self.params_like, periods, self.batch.workers, platform=platform)

  @functools.cached_property
  def make_state(self) -> Callable[[], TrainState]:
    """Makes the state before the first step, on the devices."""
    return jax.jit(self.new_state, out_shardings=self.shardings)

  @functools.cached_property
  def eval_step(self) -> Callable[..., jax.Array]:
    """See `make_eval_step`."""
    losses = functools.partial(model_lib.sequence_losses, config=self.model)
    return make_eval_step(losses, self.mesh)

  @functools.cached_property
  def local_mean(self) -> Callable[[TrainState], optax.Params]:
    """Makes the mean of the workers' own parameters."""
    return jax.jit(local_mean, out_shardings=self.shardings.params)

  @functools.cached_property
  def traced(self) -> jax.stages.Traced:
    """The step as it is compiled, with the state donated and its shardings kept."""
    jitted = jax.jit(self.step, donate_argnums=0, out_shardings=(self.shardings, None))
    return jitted.trace(self.state_like, self.tokens_like, self.active_like)

  @functools.cached_property
  def lowered(self) -> jax.stages.Lowered:
    """The traced step as XLA takes it."""
    return self.traced.lower()

  def compile(self) -> jax.stages.Compiled:
    """Returns the step compiled for the devices of its mesh."""
    lowered = self.lowered
    if mesh_lib.platform(self.mesh) != 'tpu':
      return lowered.compile()
    try:
      return lowered.compile(compiler_options=_TPU_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
      if 'No such compile option' not in str(error):
        raise
      logging.warning('this libtpu has no %s: more bytes may be sent.', *_TPU_OPTIONS)
      return lowered.compile()


def make_worker_mesh(
  config: config_dict.ConfigDict, batch: Batch, devices: Sequence[jax.Device] | None
) -> Mesh:
  """Returns the mesh of a run over `devices`, all of this machine's if None.

  Raises:
    UserError: the devices cannot be shared out evenly, or not the sequences of a micro-batch.
  """
  mesh = mesh_lib.make_mesh(config.workers, config.mesh.fsdp, devices, config.mesh.straddle)
  fsdp, sequences = mesh.shape[mesh_lib.FSDP], batch.worker_sequences
  if batch.sequences % fsdp:
    most = sequences // fsdp
    fitting = [n for n in range(1, most + 1) if sequences % (n * fsdp) == 0]
    hint = (
      f'accumulation can be {" or ".join(map(str, fitting))}'
      if fitting
      else (f'batch_size can be {max(1, round(sequences / fsdp)) * fsdp} with accumulation=1')
    )
    raise UserError(
      f'batch_size / accumulation is {batch.sequences}, which mesh.fsdp={fsdp} devices of a '
      f'worker cannot share evenly; {hint}.'
    )
  return mesh


def make_program(
  config: config_dict.ConfigDict,
  vocab_size: int,
  clock: Clock,
  mesh: Mesh,
  document_end: int = -1,
) -> Program:
  """Returns the training step of a checked configuration.

  Args:
    config: of the run.
    vocab_size: of its tokenizer.
    clock: of its segment.
    mesh: from `make_worker_mesh`; its devices may be some that only a compiler knows.
    document_end: of `GPTConfig`.

  Raises:
    UserError: the model or the optimizer cannot be made as configured.
  """
  model = model_config(config, vocab_size, document_end)
  model = dataclasses.replace(model, platform=mesh_lib.platform(mesh))
  init_params = functools.partial(model_lib.init_params, model)
  params_like = _params_like(model)
  optimizer = make_optimizer(config, params_like, clock)
  state_of = functools.partial(init_state, optimizer.tx, config.workers)
  key = jax.random.key(config.seed)
  new_state = lambda: state_of(init_params(key))
  state_like = jax.eval_shape(state_of, params_like)  # The model is not traced again.
  state_like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state_like,
    mesh_lib.shardings(mesh, state_like, STATE_AXES),
  )
  active_like = None
  if active_workers(config):
    active_like = jax.ShapeDtypeStruct((config.workers,), bool, sharding=NamedSharding(mesh, P()))
  loss = functools.partial(model_lib.next_token_loss_and_metrics, config=model)
  return Program(
    config=config,
    model=model,
    mesh=mesh,
    batch=clock.batch,
    params_like=params_like,
    optimizer=optimizer,
    state_of=state_of,
    new_state=new_state,
    state_like=state_like,
    tokens_like=jax.ShapeDtypeStruct(
      clock.batch.shape,
      jnp.int32,
      sharding=NamedSharding(mesh, P(mesh_lib.WORKERS, None, mesh_lib.FSDP)),
    ),
    active_like=active_like,
    step=make_train_step(loss, optimizer.tx_of_steps, optimizer.schedule, mesh),
  )


@functools.lru_cache(maxsize=8)
def _params_like(model: model_lib.GPTConfig) -> optax.Params:
  return jax.eval_shape(functools.partial(model_lib.init_params, model), jax.random.key(0))
