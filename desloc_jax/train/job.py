"""From a configuration to all that a run needs: data, model, transform, mesh, compiled step."""

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import time

from absl import logging
import jax
from ml_collections import config_dict
import numpy as np

from desloc_jax.checkpoints.segment import BEGINNING, Clock, make_clock, Segment
from desloc_jax.hosts.peers import peers
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.optimizer.over_workers import AXIS_NAMES, is_local, WORKERS
from desloc_jax.options.checks import check_config
from desloc_jax.options.worker_failures import active_workers
from desloc_jax.programs.hlo import read_collectives, sync_bytes
from desloc_jax.programs.ledger import Ledger, read_ledger, transform_ledger
from desloc_jax.train.program import make_program, make_worker_mesh, Program
from desloc_jax.train.setup import mesh as mesh_lib
from desloc_jax.train.setup.build_periods import sent_periods
from desloc_jax.train.setup.open_data import Data, load_data, Texts

# Gives a compiled step, and the seconds that it took.
Compiling = futures.Future[tuple[jax.stages.Compiled, float]]
# Bytes by which the ledger and a compiled program may differ in an average.
_SMALL = 2**16


@dataclasses.dataclass(frozen=True)
class Job:
  """A run, ready to be stepped. Nothing in it changes while it runs.

  Attributes:
    config: of the run.
    clock: of its segment.
    data: what it reads.
    local_workers: those with devices of this process, in a row.
    program: the step with all that it is compiled for.
    ledger: what the step sends.
    compiling: gives the compiled step, and the seconds that it took.
  """

  config: config_dict.ConfigDict
  clock: Clock
  data: Data
  local_workers: Sequence[int]
  program: Program
  ledger: Ledger
  compiling: Compiling

  @functools.cached_property
  def train_step(self) -> jax.stages.Compiled:
    """The step, once it is compiled; see `make_train_step`."""
    return self.compiling.result()[0]

  @property
  def compile_s(self) -> float:
    """Seconds that compiling took."""
    return self.compiling.result()[1]

  @functools.cached_property
  def active(self) -> Callable[[int], np.ndarray] | None:
    """Step -> boolean [workers]: who is there; None: always all."""
    return active_workers(self.config)

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
  """Checks a configuration, loads its data and has its training step compiled for `devices` (all).

  A thread compiles, so that the state can be made or read and evaluated meanwhile.

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
  mesh = make_worker_mesh(config, clock.batch, devices)
  local_workers = peers().together(lambda: mesh_lib.local_workers(mesh, config.workers))
  data = peers().together(lambda: load_data(config, segment.stream_start, local_workers, texts))
  peers().compare({'data': data.fingerprint})
  document_end = -1 if config.data.attend_across_documents else data.tokenizer.end_of_document
  program = make_program(config, data.tokenizer.vocab_size, clock, mesh, document_end)
  return Job(config, clock, data, local_workers, *compile_program(program))


def compile_program(program: Program) -> tuple[Program, Ledger, Compiling]:
  """Returns a program with its ledger, and what will be its compiled step: it takes seconds."""
  ledger = ledger_of(program)
  program.lowered  # noqa: B018  Here: two threads that trace would wait for each other.
  thread = futures.ThreadPoolExecutor(1)
  compiling = thread.submit(compile_and_check, program, ledger)
  thread.shutdown(wait=False)  # It ends with its work.
  return program, ledger, compiling


def compile_and_check(program: Program, ledger: Ledger) -> tuple[jax.stages.Compiled, float]:
  """Returns the compiled step, and the seconds that it took; warns as `check_compiled` does."""
  start = time.perf_counter()
  compiled = program.compile()
  seconds = time.perf_counter() - start
  check_compiled(program, compiled, ledger)
  return compiled, seconds


def ledger_of(program: Program) -> Ledger:
  """Returns what a step sends between workers; where they share devices, what separate ones would."""
  mesh, workers, optimizer = program.mesh, program.batch.workers, program.optimizer
  named, platform = sent_periods(optimizer.quantities), mesh_lib.platform(mesh)
  if not is_local(mesh) and optimizer.tx is optimizer.tx_of_steps:
    ledger = read_ledger(program.traced.jaxpr, named, workers, platform=platform)
    # What no all-reduce adds up, a row of the mesh sends for several workers, or none sends at all.
    sent = {
      name for name, period in optimizer.quantities.items() if period
    } <= ledger.bytes_per_sync.keys()
    if mesh.shape[WORKERS] == workers or (sent and not ledger.ring_factors):
      return ledger
  return transform_ledger(optimizer.tx, program.params_like, named, workers, AXIS_NAMES, platform)


def check_compiled(program: Program, compiled: jax.stages.Compiled, ledger: Ledger) -> None:
  """Warns of what XLA sends between workers otherwise than the ledger has it."""
  config, mesh = program.config, program.mesh
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
