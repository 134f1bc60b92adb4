"""What runs over the wire: each method at some period, and its ledger."""

import dataclasses

from configs import tiny
from desloc_jax.plan import make_plan
from desloc_jax.programs.ledger import Ledger
from experiments.systems.wire.changing_rate import Phase

METHODS = ('ddp', 'local_adam', 'favg_opt', 'diloco', 'desloc')
SILENT = 'no communication'
# What is sent in few bytes, by name. Second moments have no topk; of a tiny model its messages would
# be shorter than what goes beside them.
SYNCS = {
  'desloc+bf16': {'method': 'desloc', 'sync.params': 'bf16', 'sync.moments': 'bf16'},
  'desloc+int8': {'method': 'desloc', 'sync.params': 'int8', 'sync.moments': 'int8'},
  'desloc+int4': {'method': 'desloc', 'sync.params': 'int4', 'sync.moments': 'int4'},
  'favg_opt+topk': {'method': 'favg_opt', 'sync.params': 'topk', 'model.width': 512},
}
# Syncs behind the steps, by name, beside which `desloc` waits for them.
HIDDEN = {
  'desloc behind': {'method': 'desloc', 'sync.behind': True},
  'desloc behind+int8': {**SYNCS['desloc+int8'], 'sync.behind': True},
  'desloc behind+fragments': {'method': 'desloc', 'sync.behind': True, 'sync.fragments': 2},
}
# Of those from one sync to the next, with nothing on its way.
_LOCAL_STEPS = 12
PARTS = ('bytes', 'time', 'overhead', 'behind')
TIME_PERIOD = 64  # K_x of the runs that are timed.
# DDP averages at every step, so that lines of the log are never far from one.
_LOG_EVERY = {'ddp': 8}
_COMMON = {
  'seq_len': 64, 'eval.sequences': 8, 'schedule.warmup_steps': 10,
  'checkpoint.every': 0,  # Saving is no part of a step.
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
  """One run over the wire.

  Attributes:
    method: of `METHODS`, `SYNCS` or `HIDDEN`, or `SILENT`.
    sites: processes, each with one worker.
    period: K_x.
    phases: that are measured.
    part: what it is run for, of `PARTS`.
    batch_size: sequences of a worker and step.
    devices: virtual CPU devices of each worker.
  """

  method: str
  sites: int
  period: int
  phases: tuple[Phase, ...]
  part: str = 'bytes'
  batch_size: int = 1
  devices: int = 1

  @property
  def name(self) -> str:
    return self.method if self.devices == 1 else f'{self.method}, fsdp={self.devices}'

  @property
  def megabits(self) -> float | None:
    """The rate of the first phase."""
    return self.phases[0].megabits

  @property
  def log_every(self) -> int:
    """Steps between lines of the log, half a K_x so that every other one is far from a sync.

    With few bytes a sync, nine halves: lines are sent too.
    """
    return _LOG_EVERY.get(self.method, (9 if self.method in SYNCS else 1) * self.period // 2)

  @property
  def options(self) -> dict[str, object]:
    """Options of the run, besides `tiny`'s."""
    batch_size = max(self.batch_size, self.devices)
    return {**_COMMON, 'batch_size': batch_size, 'periods.params': self.period, **self._sent}

  @property
  def _sent(self) -> dict[str, object]:
    if self.method == SILENT:
      return {'method': 'desloc', 'periods.params': 0}
    if self.method in HIDDEN:
      options = HIDDEN[self.method]
      between = self.period // options.get('sync.fragments', 1)
      return {**options, 'sync.delay': between - _LOCAL_STEPS}
    return SYNCS.get(self.method, {'method': self.method})

  def ledger(self) -> Ledger:
    """Returns what a worker sends."""
    config = tiny.get_config()
    config.update_from_flattened_dict({**self.options, 'workers': self.sites})
    return make_plan(config).ledgers[config.method]

  def __str__(self) -> str:
    return f'{self.name}, K_x {self.period}, {self.sites} processes'
