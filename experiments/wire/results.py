"""Rows of the two tables: what was measured beside what was to be expected."""

from collections.abc import Mapping, Sequence
import dataclasses

from desloc_jax.plan.timing import Link, step_time
from desloc_jax.train.metrics import format_bytes
from experiments.wire.methods import Case, SILENT
from experiments.wire.network import MTU
from experiments.wire.runs import Window

# Of a packet: Ethernet 14 bytes, IP 20, TCP 32 with its timestamp.
_ETHERNET, _HEADERS = 14, 52
PAYLOAD_SHARE = (MTU - _HEADERS) / (MTU + _ETHERNET)


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
  """Seconds of a mean step at one rate."""

  processes: int
  method: str
  K_x: int
  megabits: float | None
  steps: int
  step_s: float
  tokens_per_s: float
  predicted_s: float | None  # By the planner; None where no rate limits.
  over_silent: float  # Times the step without communication, at the same rate.

  @staticmethod
  def columns() -> tuple[str, ...]:
    return (
      'method', 'processes', 'K_x', 'Mbit/s', 'step', 'tokens/s', 'predicted', 'off by',
      'over no communication',
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
    )


def time_rows(measured: Mapping[Case, Sequence[Window]]) -> list[TimeRow]:
  """Returns a row for each phase of each run.

  A step's arithmetic is taken to be what a run without communication takes, unthrottled.
  """
  silent = {
    (case.sites, window.phase.megabits): window.step_s
    for case, windows in measured.items()
    if case.method == SILENT
    for window in windows
  }
  return [
    _time_row(case, window, silent) for case, windows in measured.items() for window in windows
  ]


def _time_row(case: Case, window: Window, silent: Mapping[tuple, float]) -> TimeRow:
  megabits, predicted = window.phase.megabits, None
  if megabits is not None:
    link = Link(megabits * 1e6 / 8 * PAYLOAD_SHARE)
    predicted = step_time(case.ledger(), link, silent[case.sites, None]).total_s
  tokens = case.sites * case.options['batch_size'] * case.options['seq_len']
  return TimeRow(
    case.sites,
    case.method,
    case.period,
    megabits,
    window.phase.steps,
    window.step_s,
    tokens / window.step_s,
    predicted,
    window.step_s / silent[case.sites, megabits],
  )
