"""A part of a run with one configuration: where it began, and how it counts on from there.

A run that restarts with another number of workers, or another batch, method or schedule, begins a
new segment. Steps go on counting; tokens, bytes, the data stream and the learning rate's schedule
start from what the segments before it left.
"""

from collections.abc import Mapping
import dataclasses
import math

from ml_collections import config_dict
import optax

from desloc_jax.data import StreamStart
from desloc_jax.errors import UserError
from desloc_jax.options.batch import Batch, batch_of


@dataclasses.dataclass(frozen=True)
class Segment:
  """Where a segment began; the default is the beginning of a run.

  Attributes:
    step: steps done before it.
    consumed: sequences of each data source that were consumed before it.
    tokens: tokens that were consumed before it.
    progress: steps of the learning rate's schedule that were done before it.
    schedule_tokens: tokens that make a step of a schedule in tokens: a step of the run's first
      batch. 0: this is the first segment.
    bytes_per_worker: payload that each worker had sent before it.
    syncs: averages of each quantity before it.
    orders: in which order each source is read, where that is not its place; see `StreamStart`.
  """

  step: int = 0
  consumed: Mapping[str, int] = dataclasses.field(default_factory=dict)
  tokens: int = 0
  progress: float = 0.0
  schedule_tokens: int = 0
  bytes_per_worker: int = 0
  syncs: Mapping[str, int] = dataclasses.field(default_factory=dict)
  orders: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Raises ValueError for what no run has counted: a checkpoint may hold anything."""
    for name, value in dataclasses.asdict(self).items():
      numbers = value.values() if name in ('consumed', 'syncs', 'orders') else (value,)
      kinds = (int, float) if name == 'progress' else (int,)
      if not all(type(number) in kinds and 0 <= number < 2**63 for number in numbers):
        raise ValueError(f'{name} is {value!r:.60}')

  @property
  def stream_start(self) -> StreamStart:
    """Where the segment's data stream begins."""
    return StreamStart(self.step, self.consumed, self.orders)


BEGINNING = Segment()


@dataclasses.dataclass(frozen=True)
class Clock:
  """Counts tokens and schedule steps through a segment.

  Attributes:
    segment: that it counts in.
    batch: of a step in this segment.
    rate: schedule steps a step.
    steps: of the whole schedule.
  """

  segment: Segment
  batch: Batch
  rate: float
  steps: int

  def tokens(self, step: int) -> int:
    """Returns the tokens of all workers in the run's first `step` steps."""
    return self.segment.tokens + (step - self.segment.step) * self.batch.tokens

  def progress(self, step):
    """Returns the schedule steps done after `step` steps, which may be traced."""
    if self.rate == 1 and self.segment.progress == self.segment.step:
      return step  # A whole number stays one.
    return self.segment.progress + (step - self.segment.step) * self.rate

  @property
  def last_step(self) -> int:
    """The step at which the schedule ends."""
    remaining = (self.steps - self.segment.progress) / self.rate
    return self.segment.step + max(0, math.ceil(remaining - 1e-6))

  def follow(self, schedule: optax.Schedule) -> optax.Schedule:
    """Returns a schedule of schedule steps as one of the run's steps."""
    return lambda step: schedule(self.progress(step))


def make_clock(config: config_dict.ConfigDict, segment: Segment) -> Clock:
  """Returns the clock of a segment with this configuration.

  Raises:
    UserError: `stop_at` is after the last step.
  """
  batch, rate = batch_of(config), 1.0
  if config.schedule.unit == 'tokens' and segment.schedule_tokens:
    rate = batch.tokens / segment.schedule_tokens
  clock = Clock(segment, batch, rate, config.steps)
  if config.stop_at is not None and not 1 <= config.stop_at <= clock.last_step:
    raise UserError(
      f'stop_at is {config.stop_at}; expected a step from 1 to the last ({clock.last_step}).'
    )
  return clock
