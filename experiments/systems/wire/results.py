"""Rows of the tables: what was measured beside what was to be expected."""

from collections.abc import Sequence
import dataclasses
import statistics

from desloc_jax.logs.metrics import format_bytes
from desloc_jax.plan.timing import Link, step_time
from experiments.systems.overhead import Turn
from experiments.systems.wire.changing_rate import Window
from experiments.systems.wire.compared import Case, SILENT
from experiments.systems.wire.network import MTU

# Of a packet: Ethernet 14 bytes, IP 20, TCP 32 with its timestamp.
_ETHERNET, _HEADERS = 14, 52
PAYLOAD_SHARE = (MTU - _HEADERS) / (MTU + _ETHERNET)
# For each case what each start measured: phase by phase, or of the overhead turn by turn.
Measured = dict[Case, list[Sequence[Window] | Sequence[Turn]]]


@dataclasses.dataclass(frozen=True)
class BytesRow:
  """Bytes that a process sends for a step, the mean over whole cycles and all processes."""

  processes: int
  method: str
  K_x: int
  steps: int
  ledger_payload: float
  ring: float  # What a ring all-reduce of that must send.
  measured: float

  @staticmethod
  def columns() -> tuple[str, ...]:
    return 'method', 'processes', 'K_x', 'payload/step', 'ring/step', 'on the wire', 'over the ring'

  def cells(self) -> tuple[str, ...]:
    period = '1' if self.method == 'ddp' else str(self.K_x)
    sizes = (self.ledger_payload, self.ring, self.measured)
    over = f'{self.measured / self.ring - 1:+.1%}'
    return self.method, str(self.processes), period, *map(format_bytes, sizes), over


def bytes_rows(measured: Measured) -> list[BytesRow]:
  """Returns a row for each run."""
  return [_bytes_row(case, windows[0]) for case, (windows,) in measured.items()]


def _bytes_row(case: Case, window: Window) -> BytesRow:
  ledger = case.ledger()
  payload = ledger.bytes_per_step
  return BytesRow(
    case.sites,
    case.name,
    case.period,
    window.phase.steps,
    payload,
    ledger.ring_bytes_per_step,
    window.bytes_per_step,
  )


@dataclasses.dataclass(frozen=True)
class TimeRow:
  """Seconds of a mean step at one rate.

  `over_local` is how many times a step takes what a local step of the same run and rate does, by
  which the machine's changes from run to run cancel; None where there is none (DDP) or nothing else
  (no communication). `over_silent` is how many times it takes what a step does in a run without
  communication. `link_used` is the share of the link's rate at which averages move, headers
  included; None where they take less than half of a step, too little to tell.
  """

  processes: int
  method: str
  K_x: int
  megabits: float | None
  steps: int
  step_s: float
  tokens_per_s: float
  predicted_s: float | None  # By the planner; None where no rate limits.
  over_local: float | None
  over_silent: float
  link_used: float | None

  @staticmethod
  def columns() -> tuple[str, ...]:
    return (
      'method', 'processes', 'K_x', 'Mbit/s', 'step', 'tokens/s', 'predicted', 'off by',
      'over its local step', 'over no communication', 'of the link',
    )  # fmt: skip

  def cells(self) -> tuple[str, ...]:
    predicted, off = '-', '-'
    if self.predicted_s is not None:
      predicted = f'{1e3 * self.predicted_s:.1f} ms'
      off = f'{self.step_s / self.predicted_s - 1:+.1%}'
    return (
      self.method,
      str(self.processes),
      {'ddp': '1', SILENT: '-'}.get(self.method, str(self.K_x)),
      'no limit' if self.megabits is None else f'{self.megabits:g}',
      f'{1e3 * self.step_s:.1f} ms',
      f'{self.tokens_per_s:,.0f}',
      predicted,
      off,
      '-' if self.over_local is None else f'{self.over_local:.3f}x',
      f'{self.over_silent:.2f}x',
      '-' if self.link_used is None else f'{self.link_used:.0%}',
    )


def time_rows(measured: Measured) -> list[TimeRow]:
  """Returns a row for each phase of each run; of each number of processes one run is silent.

  The planner is given the time of a step's arithmetic: that of a local step of the same run and
  rate, or else of the run without communication, whatever the rate: the median over its phases.
  """
  silent_s = {
    case.sites: statistics.median(window.step_s for window in windows)
    for case, (windows,) in measured.items()
    if case.method == SILENT
  }
  return [
    _time_row(case, window, silent_s[case.sites])
    for case, (windows,) in measured.items()
    for window in windows
  ]


def _time_row(case: Case, window: Window, silent_s: float) -> TimeRow:
  megabits, step_s = window.phase.megabits, window.step_s
  local_s = None if case.method == SILENT else window.local_step_s
  arithmetic_s = local_s or silent_s
  predicted_s = link_used = None
  if megabits is not None:
    planned = step_time(case.ledger(), Link(megabits * 1e6 / 8 * PAYLOAD_SHARE), arithmetic_s)
    predicted_s = planned.total_s
    measured_s = step_s - arithmetic_s
    if measured_s > step_s / 2:
      link_used = planned.communication_s / measured_s
  return TimeRow(
    processes=case.sites,
    method=case.method,
    K_x=case.period,
    megabits=megabits,
    steps=window.phase.steps,
    step_s=step_s,
    tokens_per_s=case.sites * case.options['batch_size'] * case.options['seq_len'] / step_s,
    predicted_s=predicted_s,
    over_local=local_s and step_s / local_s,
    over_silent=step_s / silent_s,
    link_used=link_used,
  )


@dataclasses.dataclass(frozen=True)
class OverheadRow:
  """One turn of a method; see `Turn`."""

  processes: int
  method: str
  K_x: int
  megabits: float
  start: int
  turn: int
  step_s: float
  waiting_s: float | None
  local_step_s: float

  @property
  def as_turn(self) -> Turn:
    """What was measured, without what was varied."""
    return Turn(self.step_s, self.waiting_s, self.local_step_s)

  @staticmethod
  def columns() -> tuple[str, ...]:
    return 'method', 'processes', 'K_x', 'Mbit/s', 'start', 'turn', *Turn.columns()

  def cells(self) -> tuple[str, ...]:
    return (
      self.method,
      str(self.processes),
      str(self.K_x),
      f'{self.megabits:g}',
      str(self.start),
      str(self.turn),
      *self.as_turn.cells(),
    )


def overhead_rows(measured: Measured) -> list[OverheadRow]:
  """Returns a row for each turn of each start."""
  return [
    OverheadRow(
      case.sites,
      case.method,
      case.period,
      case.megabits,
      start,
      number,
      *dataclasses.astuple(turn),
    )
    for case, starts in measured.items()
    for start, turns in enumerate(starts, 1)
    for number, turn in enumerate(turns, 1)
  ]


ROWS = {
  'bytes': bytes_rows,
  'time': time_rows,
  'overhead': overhead_rows,
  'behind': overhead_rows,
}
