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

  `over_silent` is how many times the step without communication of the same round it takes; `least` and
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
  over_silent: float
  least: float
  most: float

  @staticmethod
  def columns() -> tuple[str, ...]:
    return (
      'method', 'processes', 'K_x', 'Mbit/s', 'step', 'tokens/s', 'predicted', 'off by',
      'over no communication', 'in rounds',
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
      f'{self.over_silent:.2f}x',
      f'{self.least:.2f}-{self.most:.2f}x' if self.rounds > 1 else '-',
    )


def time_rows(measured: Measured) -> list[TimeRow]:
  """Returns a row for each phase of each run, of those rounds whose silent run is there.

  A step's arithmetic is taken to be what a run without communication takes, whatever the rate: the
  median over its phases.
  """
  silent = {
    case.sites: [statistics.median(window.step_s for window in windows) for windows in rounds]
    for case, rounds in measured.items()
    if case.method == SILENT
  }
  return [
    _time_row(case, phase, [windows[place].step_s for windows in rounds], silent[case.sites])
    for case, rounds in measured.items()
    for place, phase in enumerate(case.phases)
  ]


def _time_row(
  case: Case, phase: Phase, seconds: Sequence[float], silent: Sequence[float]
) -> TimeRow:
  predicted = None
  if phase.megabits is not None:
    link = Link(phase.megabits * 1e6 / 8 * PAYLOAD_SHARE)
    predicted = step_time(case.ledger(), link, statistics.median(silent)).total_s
  # The round in progress may have its silent run only.
  over = [step / without for step, without in zip(seconds, silent, strict=False)]
  step_s = statistics.median(seconds)
  return TimeRow(
    processes=case.sites,
    method=case.method,
    K_x=case.period,
    megabits=phase.megabits,
    steps=phase.steps,
    rounds=len(seconds),
    step_s=step_s,
    tokens_per_s=case.sites * case.options['batch_size'] * case.options['seq_len'] / step_s,
    predicted_s=predicted,
    over_silent=statistics.median(over),
    least=min(over),
    most=max(over),
  )
