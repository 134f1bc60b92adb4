"""Sync periods: checking them, and choosing them by the paper's rule or from half-lives."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MOST_TIMES = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class Timetable:
  """When a quantity is averaged, known beforehand: at every `multiple`-th of some times.

  Quantities of one list of times are averaged together, also where the times draw apart.

  Attributes:
    times: int [syncs], ascending: after how many steps.
    multiple: every which of them counts.
  """

  times: np.ndarray
  multiple: int = 1

  def count(self, done: jax.typing.ArrayLike) -> jax.Array:
    """Returns the number of averages in the first `done` steps, which may be traced."""
    lib = np if isinstance(done, int | np.integer) else jnp
    times = lib.asarray(self.times, np.int32)
    return lib.searchsorted(times, done, side='right') // self.multiple

  def after(self, done: int) -> int | None:
    """Returns the first time of an average after `done` steps, None if there is none."""
    place = (self.count(done) + 1) * self.multiple - 1
    return int(self.times[place]) if place < len(self.times) else None

  def dense(self, after: int, last: int) -> 'Timetable':
    """Returns it with an average at each step after `after` up to `last`, and as it is before."""
    times = self.times[self.multiple - 1 :: self.multiple]
    return Timetable(np.append(times[times <= after], np.arange(after + 1, last + 1)))


class Phased(int):
  """A number of steps between averages that come `early` steps before its multiples.

  As in a timetable, an average that could not be made in time comes late, and the next one in time.
  """

  early: int

  def __new__(cls, period: int, early: int = 0):
    """Takes the number, >= 1, and by how much it is early; only what is left of whole periods counts."""
    made = super().__new__(cls, period)
    made.early = early % period
    return made

  def __reduce__(self):
    return Phased, (int(self), self.early)

  def count(self, done: Any) -> Any:
    """Returns the number of averages in the first `done` steps, which may be traced."""
    return (done + self.early) // int(self)

  def after(self, done: int) -> int:
    """Returns the first time of an average after `done` steps."""
    return (self.count(done) + 1) * int(self) - self.early


# A number of steps, a schedule of it (step -> steps, as optax schedules are), a timetable, or None
# for never.
Period = int | Callable | Timetable | None
Periods = Mapping[str, Period]

# K_u = 3 K_x and K_v = 6 K_x: section "recommended periods" of arXiv:2505.22549.
PAPER_MULTIPLES = {'mu': 3, 'nu': 6}


def check_periods(periods: Periods) -> dict[str, Period]:
  """Returns `periods` with plain integers, schedules and None.

  Raises:
    ValueError: a period is neither None, nor a schedule, nor a whole number of steps >= 1, or
      `'params'` is missing.
  """
  checked = {}
  for name, period in periods.items():
    known = period is None or callable(period) or isinstance(period, Timetable)
    checked[name] = period if known else _whole_steps(name, period)
  if 'params' not in checked:
    raise ValueError(
      f"periods must say how often 'params' is averaged (a number of steps, or None for never); "
      f'got only {sorted(checked)}.'
    )
  return checked


def shortest_gap(period: Period) -> float | None:
  """Returns the least number of steps between two averages; None: it is not known."""
  if isinstance(period, Timetable):
    times = period.times[period.multiple - 1 :: period.multiple]
    return int(np.diff(times, prepend=0).min()) if len(times) else math.inf
  return None if callable(period) else period


def least_between(phases: Sequence[Phased]) -> int:
  """Returns the least number of steps from an average of one to one of another; of one period."""
  early = sorted(phase.early for phase in phases)
  following = [*early[1:], early[0] + int(phases[0])]
  return min(b - a for a, b in zip(early, following, strict=True))


def _whole_steps(name: str, period) -> int:
  if isinstance(period, Phased):
    return period
  try:
    steps = None if isinstance(period, bool) else operator.index(period)
  except TypeError:
    steps = None
  if steps is None or steps < 1:
    raise ValueError(
      f'periods[{name!r}] is {period!r}; expected a whole number of steps >= 1, or None for never.'
    )
  return steps


def falls_on(period: float, steps: np.ndarray) -> np.ndarray:
  """Returns boolean [steps]: is there an average after so many steps? The period may be a mean one."""
  return (steps + getattr(period, 'early', 0)) % period < 1


def half_life(decay: float) -> float:
  r"""Returns the half-life, in steps, of an exponential moving average: ln(0.5) / ln(decay).

  Raises:
    ValueError: `decay` is not in [0, 1).
  """
  if not 0 <= decay < 1:
    raise ValueError(f'a decay must be in [0, 1), got {decay!r}.')
  return 0.0 if decay == 0 else math.log(0.5) / math.log(decay)


def periods_from_half_lives(
  params: int, decays: Mapping[str, float] | None = None
) -> dict[str, int | None]:
  """Returns sync periods for a parameter period and the decay of each moment.

  Without `decays` it is the paper's rule: `mu` every 3 and `nu` every 6 parameter syncs. With them,
  a moment is averaged once per half-life, rounded to a whole number of parameter syncs so that
  syncs coincide, and never more often than the parameters (whose noise it would then follow).

  Args:
    params: steps between parameter syncs (K_x), chosen from the bandwidth.
    decays: decay rate of each state field, e.g. `{'mu': 0.95, 'nu': 0.9999}` for Adam's b1 and b2.

  Returns:
    Steps between syncs, by state field name, for `desloc`'s `periods`.

  Raises:
    ValueError: `params` is no whole number >= 1, or a decay is not in [0, 1).

  Example:
    >>> periods_from_half_lives(256)
    {'params': 256, 'mu': 768, 'nu': 1536}
    >>> periods_from_half_lives(64, {'mu': 0.95, 'nu': 0.999})
    {'params': 64, 'mu': 64, 'nu': 704}
  """
  params = _whole_steps('params', params)
  if decays is None:
    multiples = PAPER_MULTIPLES
  else:
    multiples = {name: max(1, round(half_life(b) / params)) for name, b in decays.items()}
  return {'params': params, **{name: each * params for name, each in multiples.items()}}


def grown(period: int, growth: float, steps: int, step, *, dense_after: float = math.inf):
  """Returns a period that grows linearly, to `growth` times itself in `steps` steps, at `step`.

  After `dense_after` steps it is 1.
  """
  lib = jnp if isinstance(step, jax.Array) else np
  now = lib.maximum(lib.rint(period * (1 + (growth - 1) * step / steps)).astype(np.int32), 1)
  return now if dense_after == math.inf else lib.where(step >= dense_after, 1, now)


def growing_timetables(
  periods: Mapping[str, int | None], growth: float, steps: int, last: int
) -> dict[str, Timetable | None]:
  """Returns timetables for periods that grow linearly to `growth` times themselves.

  The shortest period grows; those that are whole multiples of it stay so, counted in its averages,
  so that averages go on coming together. Any other one grows by itself.

  Args:
    periods: steps between averages at the start, by quantity; None: never.
    growth: the factor, >= 1.
    steps: after which the periods have grown by it.
    last: step after which no average is needed.

  Raises:
    ValueError: there would be more than 4 million averages.
  """
  numbers = [period for period in periods.values() if period is not None]
  if not numbers:
    return dict.fromkeys(periods)
  shortest = min(numbers)
  together = _growing_times(shortest, growth, steps, last)

  def timetable(period: int | None) -> Timetable | None:
    if period is None:
      return None
    if period % shortest == 0:
      return Timetable(together, period // shortest)
    return Timetable(_growing_times(period, growth, steps, last))

  return {name: timetable(period) for name, period in periods.items()}


def _growing_times(period: int, growth: float, steps: int, last: int) -> np.ndarray:
  """Returns the times at which the steps since the one before reach the period of their step."""
  times: list[int] = []
  previous = 0
  while True:
    time = previous + 1
    while time <= last and (now := int(grown(period, growth, steps, time - 1))) > time - previous:
      # Of a period that does not shrink nothing before this can be the time.
      time = previous + now if growth >= 1 else time + 1
    if time > last:
      return np.asarray(times, np.int64)
    times.append(time)
    if len(times) > _MOST_TIMES:
      raise ValueError(
        f'a period of {period} steps that grows to {growth:g} times itself in {steps} steps makes '
        f'more than {_MOST_TIMES:,} averages; take a longer one, or one that does not grow.'
      )
    previous = time
