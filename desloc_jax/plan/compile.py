"""The training step compiled ahead of time for TPUs: what XLA makes of a run before it is booked.

What is compiled is the program of `desloc_jax.train.program`, the one that a run compiles.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
import time

import jax
from ml_collections import config_dict

from desloc_jax import model as model_lib
from desloc_jax.checkpoints.segment import BEGINNING, make_clock
from desloc_jax.errors import UserError
from desloc_jax.optimizer.over_workers import AXIS_NAMES
from desloc_jax.options.checks import check_config
from desloc_jax.options.topology import CHIPS, parse_topology, topology_devices, TopologyName
from desloc_jax.plan.estimate import vocabulary_size
from desloc_jax.plan.memory import memory_bytes
from desloc_jax.programs.hlo import Collective, read_collectives
from desloc_jax.programs.ledger import Ledger, transform_ledger
from desloc_jax.train.program import make_program, make_worker_mesh, Program
from desloc_jax.train.setup import mesh as mesh_lib
from desloc_jax.train.setup.build_periods import sent_periods


class DoesNotFit(UserError):
  """XLA could not place the program in the memory of a chip."""


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A training step as XLA compiled it for a topology.

  Attributes:
    config: of the run.
    topology: that it was compiled for.
    chips: that share a worker.
    workers_a_row: workers that share those chips.
    parameters: of the model.
    estimate: bytes a chip by what they are for, see `plan.memory`.
    memory: bytes a chip by XLA's plan: 'state' (what goes in and comes out), 'temporaries', and
      'program'.
    collectives: of the whole step.
    ledger: of its syncs.
    xla_flops: operations of a chip by XLA's count, in which a loop's body counts once.
    model_flops: operations of a chip and step by `model.flops_per_token`.
    seconds: that compiling took.
  """

  config: config_dict.ConfigDict
  topology: TopologyName
  chips: int
  workers_a_row: int
  parameters: int
  estimate: Mapping[str, float]
  memory: Mapping[str, int]
  collectives: Sequence[Collective]
  ledger: Ledger
  xla_flops: float
  model_flops: float
  seconds: float

  @property
  def capacity(self) -> int:
    """Bytes of a chip that a program can use."""
    return CHIPS[self.topology.chip].memory_bytes

  def crosses(self, collective: Collective) -> bool:
    """Whether data goes from the chips of one worker to those of another."""
    ids = range(max((d for group in collective.groups for d in group), default=0) + 1)
    return collective.crosses([i // self.chips for i in ids])


def compile_step(config: config_dict.ConfigDict) -> CompiledStep:
  """Returns the training step of a run, compiled for `config.topology`.

  Raises:
    UserError: the configuration cannot work, or there is no such topology or no compiler for it.
    DoesNotFit: a chip has too little memory.
  """
  check_config(config)
  if not config.topology:
    raise UserError("--mode=compile needs a topology, e.g. --config.topology='v5e:8x8'.")
  topology = parse_topology(config.topology)
  vocab_size = vocabulary_size(config)
  if config.workers % topology.slices and not config.mesh.straddle:
    raise UserError(
      f'workers is {config.workers}, which the {topology.slices} slices of topology '
      f"'{topology}' cannot share evenly: a worker would span slices. "
      '--config.mesh.straddle=True permits it.'
    )
  devices = topology_devices(topology)
  clock = make_clock(config, BEGINNING)
  mesh = make_worker_mesh(config, clock.batch, devices)
  rows, chips = (mesh.shape[axis] for axis in (mesh_lib.WORKERS, mesh_lib.FSDP))
  program = make_program(config, vocab_size, clock, mesh)
  estimate = estimate_memory(config, program, chips)
  begin = time.perf_counter()
  compiled = _compile(program, topology, estimate)
  seconds = time.perf_counter() - begin
  model = dataclasses.replace(program.model, seq_len=config.seq_len)
  return CompiledStep(
    config=config,
    topology=topology,
    chips=chips,
    workers_a_row=config.workers // rows,
    parameters=model_lib.parameter_count(model),
    estimate=estimate,
    memory=_planned_bytes(compiled),
    collectives=read_collectives(compiled.as_text()),
    ledger=sync_ledger(config, program),
    xla_flops=compiled.cost_analysis()['flops'],
    model_flops=model_lib.flops_per_token(model) * clock.batch.tokens / len(devices),
    seconds=seconds,
  )


def sync_ledger(config: config_dict.ConfigDict, program: Program) -> Ledger:
  """Returns what each worker sends, of a step that is not compiled yet."""
  optimizer = program.optimizer
  periods = sent_periods(optimizer.quantities)
  return transform_ledger(
    optimizer.tx, program.params_like, periods, config.workers, AXIS_NAMES, 'tpu'
  )


def estimate_memory(
  config: config_dict.ConfigDict, program: Program, chips: int
) -> Mapping[str, float]:
  """Returns bytes a chip by what they are for, of the workers that share it."""
  a_row = config.workers // program.mesh.shape[mesh_lib.WORKERS]
  # 'auto' is cuDNN's attention on a GPU and XLA's here, which holds its scores.
  parts = memory_bytes(
    dataclasses.replace(program.model, seq_len=config.seq_len, attention='xla'),
    program.params_like,
    program.optimizer.tx,
    program.batch,
    chips,
  )
  shared = ('consensus copy', 'shared memory of syncs')
  return {name: size * (1 if name in shared else a_row) for name, size in parts.items()}


def _compile(program: Program, topology: TopologyName, estimate) -> jax.stages.Compiled:
  try:
    return program.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    message = str(error).strip().splitlines()[0].removeprefix('RESOURCE_EXHAUSTED: ')
    needed = re.search(r'[\d.]+[KMGT]\b.*$', message)
    raise DoesNotFit(
      f"the step does not fit a chip of '{topology}': {needed[0] if needed else message} The sum "
      f'of its parts is {sum(estimate.values()) / 2**30:.2f} GiB. Raise accumulation, or '
      "model.remat to 'full', or take more chips a worker."
    ) from error


def _planned_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
  stats = compiled.memory_analysis()
  return {
    'state': stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes,  # The new state takes the place of the old one.
    'temporaries': stats.temp_size_in_bytes,
    'program': stats.generated_code_size_in_bytes,
  }
