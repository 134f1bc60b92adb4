"""How long a step takes: arithmetic at a share of the peak, then what a ledger says on a link."""

import dataclasses
import math

import numpy as np

from desloc_jax.optimizer.sync_periods import falls_on
from desloc_jax.programs.ledger import EVERY_STEP, Ledger

_CYCLES = 4  # Of the longest period, over which waiting is counted.


@dataclasses.dataclass(frozen=True)
class Link:
  """The network between workers.

  Attributes:
    bytes_per_s: that a worker can send to the next of a ring, over all of its devices.
    latency_s: seconds that each message takes besides.
  """

  bytes_per_s: float
  latency_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class StepTime:
  """Seconds of a mean step of a long run, in which no worker waits for another one's arithmetic.

  Attributes:
    compute_s: of arithmetic.
    communication_s: in which devices wait for the network.
  """

  compute_s: float
  communication_s: float

  @property
  def total_s(self) -> float:
    return self.compute_s + self.communication_s

  @property
  def share(self) -> float:
    """Communication's share of the step."""
    return self.communication_s / self.total_s


def compute_seconds(flops: float, devices: int, peak_flops: float, mfu: float) -> float:
  """Returns the seconds that `devices` take for `flops` operations at `mfu` of their peak (1/s)."""
  return flops / (devices * peak_flops * mfu)


def all_reduce_seconds(
  ledger: Ledger, payload_bytes: float, link: Link, name: str | None = None
) -> float:
  """Returns the seconds of a ring all-reduce: 2(W-1)/W bytes / bandwidth + 2(W-1) latencies.

  Of a quantity `name` that is no all-reduce the bytes are its own, and the latencies the same: those
  of a slice to everybody and back.
  """
  messages = 2 * (ledger.workers - 1)
  return ledger.ring_bytes(payload_bytes, name) / link.bytes_per_s + messages * link.latency_s


def step_time(
  ledger: Ledger, link: Link, compute_s: float, overlap: float = 0.0, behind: int = 0
) -> StepTime:
  """Returns the mean step of a method.

  Args:
    ledger: what it sends, and when. Each sync is one all-reduce, after the others of its step.
    link: that it sends over.
    compute_s: seconds of arithmetic a step.
    overlap: share of `compute_s` behind which gradients are averaged, where they are (DDP).
    behind: steps that are made while a sync is on its way; 0: devices wait for each.
  """
  if behind:
    return StepTime(compute_s, waiting_seconds(ledger, link, compute_s, behind))
  seconds = sum(
    all_reduce_seconds(ledger, size, link, name) / ledger.periods[name]
    for name, size in ledger.bytes_per_sync.items()
  )
  hidden = overlap * compute_s if EVERY_STEP in ledger.bytes_per_sync else 0.0
  return StepTime(compute_s, max(0.0, seconds - hidden))


def waiting_seconds(ledger: Ledger, link: Link, compute_s: float, behind: int) -> float:
  """Returns the seconds of a mean step in which devices wait for syncs that are behind the steps.

  The syncs of a step begin after it, one after another and after those before them on the link,
  and all must be done before the step that is `behind` steps later ends.
  """
  cycle = math.ceil(max((p for p in ledger.periods.values() if math.isfinite(p)), default=1))
  now = free = waited = 0.0
  due: dict[int, float] = {}
  for step, seconds in enumerate(_seconds_by_step(ledger, link, (1 + _CYCLES) * cycle), 1):
    now += compute_s
    landing = max(now, due.pop(step, now))
    waited += landing - now if step > cycle else 0  # Nothing is on its way before the first sync.
    now = landing
    if seconds:
      free = max(now, free) + seconds
      due[step + behind] = free
  return waited / (_CYCLES * cycle)


def least_delay(ledger: Ledger, link: Link, compute_s: float) -> int:
  """Returns the steps behind which the syncs of any one step are hidden."""
  return math.ceil(_seconds_by_step(ledger, link, ledger.cycle).max() / compute_s)


def _seconds_by_step(ledger: Ledger, link: Link, steps: int) -> np.ndarray:
  """Returns the seconds of the syncs after each of the first steps: float64 [steps]."""
  times, seconds = np.arange(1, steps + 1), np.zeros(steps)
  for name, size in ledger.bytes_per_sync.items():
    if math.isfinite(period := ledger.periods[name]):
      seconds += all_reduce_seconds(ledger, size, link, name) * falls_on(period, times)
  return seconds


def slowest_link(
  ledger: Ledger, latency_s: float, compute_s: float, behind: int, share: float
) -> Link:
  """Returns the slowest link over which communication takes at most `share` of a step."""
  slow, fast = 1.0, 1e15  # Bytes a second.
  while fast / slow > 1.001:
    middle = math.sqrt(slow * fast)
    time = step_time(ledger, Link(middle, latency_s), compute_s, behind=behind)
    slow, fast = (slow, middle) if time.share <= share else (middle, fast)
  return Link(fast, latency_s)


def period_for_share(period: int, time: StepTime, share: float) -> int:
  """Returns the least K_x at which communication takes at most `share` of a step.

  Args:
    period: K_x of a method that takes `time`; its other periods grow and shrink with it.
    time: of its mean step.
    share: in (0, 1).
  """
  allowed_s = time.compute_s * share / (1 - share)
  # Communication falls as 1 / K_x; a rounding error must not add a step.
  return max(1, math.ceil(period * time.communication_s / allowed_s * (1 - 1e-12)))


def with_value_size(ledger: Ledger, bytes_per_value: float) -> Ledger:
  """Returns `ledger`, which is of float32 arrays, with as many bytes for each of their values."""
  sizes = {name: size * bytes_per_value / 4 for name, size in ledger.bytes_per_sync.items()}
  return dataclasses.replace(ledger, bytes_per_sync=sizes)
