"""From a configuration to all that a run needs: data, model, transform, mesh, compiled step."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any

from absl import logging
import jax
from jax.sharding import Mesh
from ml_collections import config_dict
import numpy as np

from desloc_jax import model as model_lib
from desloc_jax.checkpoints.segment import BEGINNING, Clock, make_clock, Segment
from desloc_jax.checkpoints.state import TrainState
from desloc_jax.hosts.peers import peers
from desloc_jax.optimizer.ddp import ddp
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.optimizer.over_workers import AXIS_NAMES, is_local, WORKERS
from desloc_jax.optimizer.periods import Periods
from desloc_jax.optimizer.transform import desloc
from desloc_jax.options.checks import check_config
from desloc_jax.options.failures import active_workers
from desloc_jax.programs.hlo import read_collectives, sync_bytes
from desloc_jax.programs.ledger import Ledger, read_ledger, transform_ledger
from desloc_jax.train import mesh as mesh_lib
from desloc_jax.train.build_optimizer import sent_periods
from desloc_jax.train.open_data import Data, load_data, Texts
from desloc_jax.train.program import make_program, make_worker_mesh, Program
from desloc_jax.train.step import finite_workers, make_eval_step

# Bytes by which the ledger and a compiled program may differ in an average.
_SMALL = 2**16


@dataclasses.dataclass(frozen=True)
class Job:
  """A run, ready to be stepped. Nothing in it changes while it runs."""

  config: config_dict.ConfigDict
  data: Data
  model: model_lib.GPTConfig
  mesh: Mesh
  periods: Periods
  parameters: int
  state_of: Callable[..., TrainState]  # To be jitted: before the first step, of a model.
  new_state: Callable[[], TrainState]  # To be jitted: that of a random model.
  state_like: TrainState  # Shapes, dtypes and shardings.
  clock: Clock
  active: Callable[[int], np.ndarray] | None  # Step -> boolean [workers]; None: always all.
  local_workers: Sequence[int]  # Those with devices of this process, in a row.
  tokens_like: jax.ShapeDtypeStruct  # int32 [workers, micro-batches, sequences, seq_len + 1].
  train_step: Callable[..., tuple[TrainState, dict[str, Any]]]  # Compiled; see `make_train_step`.
  eval_step: Callable[..., jax.Array]
  finite: Callable[[TrainState], jax.Array]  # Boolean [workers].
  ledger: Ledger
  ddp_ledger: Ledger
  local_adam_ledger: Ledger
  compile_s: float

  def make_state(self) -> TrainState:
    """Returns the state before the first step, on the devices."""
    return jax.jit(
      self.new_state, out_shardings=jax.tree.map(lambda x: x.sharding, self.state_like)
    )()

  def bytes_after(self, syncs: Mapping[str, int]) -> int:
    """Returns the payload bytes of each worker, in this segment and before, after these syncs."""
    return self.clock.segment.bytes_per_worker + self.ledger.bytes_after(self._here(syncs))

  def ring_bytes_after(self, syncs: Mapping[str, int]) -> float:
    """Returns what each worker sent around a ring; before this segment as if by all-reduces."""
    before = self.ledger.ring_bytes(self.clock.segment.bytes_per_worker)
    return before + self.ledger.ring_bytes_after(self._here(syncs))

  def _here(self, syncs: Mapping[str, int]) -> dict[str, int]:
    before = self.clock.segment.syncs
    return {name: count - before.get(name, 0) for name, count in syncs.items()}


def make_job(
  config: config_dict.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
  segment: Segment = BEGINNING,
  texts: Texts | None = None,
) -> Job:
  """Checks a configuration, loads its data and compiles its training step for `devices` (all).

  Args:
    config: of the run.
    devices: default all of them.
    segment: where this part of the run begins.
    texts: of this config, if they are open already.

  Raises:
    UserError: the configuration cannot work; raised before anything is compiled.
  """
  check_config(config)
  clock = make_clock(config, segment)
  mesh = make_worker_mesh(config, devices)
  local_workers = peers().together(lambda: mesh_lib.local_workers(mesh, config.workers))
  data = peers().together(lambda: load_data(config, segment.stream_start, local_workers, texts))
  peers().compare({'data': data.fingerprint})
  document_end = -1 if config.data.attend_across_documents else data.tokenizer.end_of_document
  program = make_program(config, data.tokenizer.vocab_size, clock, mesh, document_end)
  return Job(
    config=config,
    data=data,
    mesh=mesh,
    clock=clock,
    active=active_workers(config),
    local_workers=local_workers,
    **compile_program(config, program),
  )


def compile_program(config: config_dict.ConfigDict, program: Program) -> dict[str, Any]:
  """Returns the fields of a job that are made of its program alone, which takes seconds."""
  mesh, params_like, (_, inner, periods, tx) = program.mesh, program.params_like, program.optimizer
  named, platform = sent_periods(periods), mesh_lib.platform(mesh)
  ledger = None
  if not is_local(mesh):
    arguments = (program.state_like, program.tokens_like, program.active_like)
    jaxpr = jax.make_jaxpr(program.step)(*arguments)
    ledger = read_ledger(jaxpr, named, config.workers, platform=platform)
  # What no all-reduce adds up, a row of the mesh sends for several workers.
  if ledger is None or ledger.ring_factors and mesh.shape[WORKERS] != config.workers:
    # What separate workers would send.
    ledger = transform_ledger(tx, params_like, named, config.workers, AXIS_NAMES, platform)

  start = time.perf_counter()
  compiled = program.compile()
  compile_s = time.perf_counter() - start
  check_compiled(config, mesh, compiled, ledger)

  all_periods = dict.fromkeys(periods, config.periods.params or 1)
  return {
    'model': program.model,
    'periods': periods,
    'parameters': sum(x.size for x in jax.tree.leaves(params_like)),
    'state_of': program.state_of,
    'new_state': program.new_state,
    'state_like': program.state_like,
    'tokens_like': program.tokens_like,
    'train_step': compiled,
    'finite': jax.jit(finite_workers),
    'eval_step': make_eval_step(
      functools.partial(model_lib.sequence_losses, config=program.model), mesh
    ),
    'ledger': ledger,
    'ddp_ledger': transform_ledger(ddp(inner), params_like, {}, config.workers, platform=platform),
    'local_adam_ledger': transform_ledger(
      desloc(inner, all_periods), params_like, all_periods, config.workers, platform=platform
    ),
    'compile_s': compile_s,
  }


def check_compiled(
  config: config_dict.ConfigDict, mesh: Mesh, compiled: jax.stages.Compiled, ledger: Ledger
) -> None:
  """Warns of what XLA sends between workers otherwise than the ledger has it."""
  if mesh.shape[mesh_lib.WORKERS] == 1:
    return
  devices = mesh.shape[mesh_lib.FSDP]
  worker_of_device = [i // devices for i in range(mesh.size)]
  collectives = read_collectives(compiled.as_text())
  for name, size in sync_bytes(collectives, worker_of_device).items():
    # What no all-reduce adds up is sent for each worker of a device.
    apart = config.workers // mesh.shape[WORKERS] if name in ledger.ring_factors else 1
    counted, sent = apart * ledger.bytes_per_sync.get(name, 0), devices * size
    # What is too small to be split over the devices of a worker is sent by each of them.
    if sent > 1.5 * counted + _SMALL or counted > 1.5 * sent + _SMALL:
      logging.warning(
        'An average of %s sends %d bytes a worker, as it was compiled; the ledger counts %d.',
        name,
        sent,
        counted,
      )
  if METHODS[config.method].gradients:
    return
  for collective in collectives:
    if not collective.conditional and collective.crosses(worker_of_device):
      logging.warning(
        'Every step has an %s of %d bytes between workers, which the ledger does not count.',
        collective.opcode,
        collective.result_bytes,
      )
