"""Rows of the two tables: what was measured beside what was to be expected."""

from collections.abc import Sequence
import dataclasses
import statistics

from desloc_jax.plan.timing import Link, step_time
from desloc_jax.train.metrics import format_bytes
from experiments.wire.methods import Case, SILENT
from experiments.wire.network import MTU
from experiments.wire.runs import Phase, Window

# Of a packet: Ethernet 14 bytes, IP 20, TCP 32 with its timestamp.
_ETHERNET, _HEADERS = 14, 52
PAYLOAD_SHARE = (MTU - _HEADERS) / (MTU + _ETHERNET)
# For each case what each round measured, phase by phase.
Measured = dict[Case, list[Sequence[Window]]]


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


def bytes_row(case: Case, window: Window) -> BytesRow:
  """Returns what one run sent."""
  ledger = case.ledger()
  payload = ledger.bytes_per_step
  return BytesRow(
    case.sites,
    case.name,
    case.period,
    window.phase.steps,
    payload,
    ledger.ring_bytes(payload),
    window.bytes_per_step,
  )


@dataclasses.dataclass(frozen=True)
class TimeRow:
  """Seconds of a mean step at one rate, medians over rounds.

  `over_local` is how many times a step takes what a local step of the same run and rate does, by which
  the machine's changes from run to run cancel; None where there is none (DDP). `over_silent` is how
  many times it takes what a step does in a run without communication, of the same round; `least` and
  `most` are of single rounds.
  """

  processes: int
  method: str
  K_x: int
  megabits: float | None
  steps: int
  rounds: int
  step_s: float
  tokens_per_s: float
  predicted_s: float | None  # By the planner; None where no rate limits.
  over_local: float | None
  over_silent: float
  least: float
  most: float

  @staticmethod
  def columns() -> tuple[str, ...]:
    return (
      'method', 'processes', 'K_x', 'Mbit/s', 'step', 'tokens/s', 'predicted', 'off by',
      'over its local step', 'over no communication', 'in rounds',
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
      f'{self.least:.2f}-{self.most:.2f}x' if self.rounds > 1 else '-',
    )


def time_rows(measured: Measured) -> list[TimeRow]:
  """Returns a row for each phase of each run, of those rounds whose silent run is there.

  The planner is given the time of a step's arithmetic: that of a local step of the same run and rate,
  or else of a run without communication, whatever the rate: the median over its phases.
  """
  silent = {
    case.sites: [statistics.median(window.step_s for window in windows) for windows in rounds]
    for case, rounds in measured.items()
    if case.method == SILENT
  }
  return [
    _time_row(case, phase, [windows[place] for windows in rounds], silent[case.sites])
    for case, rounds in measured.items()
    for place, phase in enumerate(case.phases)
  ]


def _time_row(
  case: Case, phase: Phase, windows: Sequence[Window], silent: Sequence[float]
) -> TimeRow:
  pairs = [(w.step_s, w.local_step_s) for w in windows if w.local_step_s and case.method != SILENT]
  arithmetic_s = statistics.median([local for _, local in pairs] or silent)
  predicted = None
  if phase.megabits is not None:
    link = Link(phase.megabits * 1e6 / 8 * PAYLOAD_SHARE)
    predicted = step_time(case.ledger(), link, arithmetic_s).total_s
  # The round in progress may have its silent run only.
  over = [window.step_s / without for window, without in zip(windows, silent, strict=False)]
  step_s = statistics.median(window.step_s for window in windows)
  return TimeRow(
    processes=case.sites,
    method=case.method,
    K_x=case.period,
    megabits=phase.megabits,
    steps=phase.steps,
    rounds=len(windows),
    step_s=step_s,
    tokens_per_s=case.sites * case.options['batch_size'] * case.options['seq_len'] / step_s,
    predicted_s=predicted,
    over_local=statistics.median(step / local for step, local in pairs) if pairs else None,
    over_silent=statistics.median(over),
    least=min(over),
    most=max(over),
  )
