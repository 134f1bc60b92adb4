"""What a call of `desloc` fixes for all its steps: arguments that are checked and belong together."""

from collections.abc import Collection, Mapping
import dataclasses
import functools

import jax
import optax

from desloc_jax.optimizer.averaging import AxisName
from desloc_jax.optimizer.health import HealthCheck
from desloc_jax.optimizer.periods import check_periods, Periods, Timetable
from desloc_jax.optimizer.syncs.mean import mean
from desloc_jax.optimizer.syncs.sync import Sync

TIMINGS = ('post', 'pre')
# The name scope around each sync: the ledger, HLO metadata and profiles find syncs by it.
SYNC_SCOPE = 'desloc_sync_'
# What a health check sends, as quantities beside those that are averaged: the vote before each
# sync, and the averages for workers that restart.
HEALTH, RESTARTS = 'health', 'restarts'


@dataclasses.dataclass(frozen=True)
class Frame:
  """The arguments of `desloc`, which says what each of them is.

  Raises:
    ValueError: two of them do not go together, or one is out of range.
  """

  inner: optax.GradientTransformationExtraArgs
  periods: Periods
  axis_name: AxisName
  outer: optax.GradientTransformation | None
  timing: str
  reset: Collection[str]
  coin_key: jax.Array | None
  warmup_steps: int
  health: HealthCheck | None
  guard: bool
  syncs: Mapping[str, Sync]

  def __post_init__(self):
    object.__setattr__(self, 'periods', check_periods(self.periods))
    periods = self.periods
    if self.timing not in TIMINGS:
      raise ValueError(f"timing is {self.timing!r}; expected 'post' or 'pre'.")
    if both := sorted(name for name in self.reset if periods.get(name) is not None):
      raise ValueError(f'{", ".join(both)} cannot be both averaged and reset.')
    if self.health and periods['params'] is None:
      raise ValueError('a health check needs a period for params: unhealthy workers restart there.')
    if self.coin_key is not None and any(isinstance(p, Timetable) for p in periods.values()):
      raise ValueError(
        'coins need periods or schedules of them; a timetable leaves nothing to chance.'
      )
    if unknown := sorted(self.syncs.keys() - self.averaged.keys()):
      raise ValueError(
        f'syncs names {", ".join(unknown)}, which periods does not average; it averages '
        f'{", ".join(self.averaged) or "nothing"}.'
      )

  @functools.cached_property
  def averaged(self) -> Periods:
    """The quantities that are ever averaged."""
    return {
      n: period for n, period in self.periods.items() if period is not None or self.warmup_steps
    }

  @property
  def averaged_fields(self) -> list[str]:
    """Those that are state fields."""
    return [name for name in self.averaged if name != 'params']

  @property
  def counted(self) -> list[str]:
    """What has a counter."""
    return [*self.averaged, *((HEALTH, RESTARTS) if self.health else ())]

  def sync_of(self, name: str) -> Sync:
    """Returns how a quantity crosses the worker axis."""
    return self.syncs.get(name) or mean()
