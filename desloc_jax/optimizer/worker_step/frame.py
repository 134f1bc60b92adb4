"""What a call of `desloc` fixes for all its steps: arguments that are checked and belong together."""

from collections.abc import Collection, Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer import state_fields
from desloc_jax.optimizer.averaging import AxisName
from desloc_jax.optimizer.fragments import Fragment, make_quantities, Quantity, select
from desloc_jax.optimizer.health import HealthCheck
from desloc_jax.optimizer.sync_periods import (
  check_periods,
  least_between,
  Periods,
  Phased,
  shortest_gap,
  Timetable,
)
from desloc_jax.optimizer.syncs.landing import OVERWRITE
from desloc_jax.optimizer.syncs.mean import mean
from desloc_jax.optimizer.syncs.sync import Sync

TIMINGS = ('post', 'pre')
# The name scope around each sync: the ledger, HLO metadata and profiles find syncs by it.
SYNC_SCOPE = 'desloc_sync_'
# What a health check sends, as quantities beside those that are averaged: the vote before each
# sync, and the averages for workers that restart.
HEALTH, RESTARTS = 'health', 'restarts'
CONSENSUS = 'consensus'


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
  last_step: int | None
  behind: bool = False
  fragments: Mapping[str, Fragment] = dataclasses.field(default_factory=dict)

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
    self._check_consensus()
    if unknown := sorted(self.syncs.keys() - self.fields):
      raise ValueError(
        f'syncs names {", ".join(unknown)}, which periods does not average; it averages '
        f'{", ".join(self.fields) or "nothing"}.'
      )
    if self.fragments:
      self._check_fragments()
    for name in self.averaged:
      self._check_delay(name)
    if self.behind:
      self._check_behind()

  def _check_consensus(self) -> None:
    if self.publishes == self.syncs.get('params', mean()).agrees:
      raise ValueError(
        "a sync of the parameters on which workers do not agree needs a period for 'consensus', the "
        'steps between those at which their mean is published; and no other sync has one.'
      )
    if self.publishes and self.outer:
      raise ValueError(
        'an outer optimizer moves a consensus, which workers that gossip never take.'
      )

  @property
  def publishes(self) -> bool:
    """Whether the consensus moves by a sync of its own, and local parameters by another."""
    return self.periods.get(CONSENSUS) is not None

  @functools.cached_property
  def averaged(self) -> dict[str, Quantity]:
    """The quantities that are ever averaged, by name."""
    found = make_quantities(self.periods, self.fragments, self.coin_key is not None)
    return {n: q for n, q in found.items() if q.period is not None or self.warmup_steps}

  @functools.cached_property
  def fields(self) -> dict[str, None]:
    """What they are of, 'params' among them, in order."""
    return dict.fromkeys(quantity.field for quantity in self.averaged.values())

  def names(self, field: str) -> list[str]:
    """Returns the quantities of a field."""
    return [name for name, quantity in self.averaged.items() if quantity.field == field]

  @property
  def averaged_fields(self) -> list[str]:
    """The quantities of state fields."""
    return [n for n, quantity in self.averaged.items() if quantity.field not in state_fields.MODELS]

  @property
  def counted(self) -> list[str]:
    """What has a counter."""
    return [*self.averaged, *((HEALTH, RESTARTS) if self.health else ())]

  def select(self, name: str, tree, params):
    """Returns the arrays of a quantity in `tree`, and a function that puts others in their place.

    `tree` is like the parameters where the quantity is of a model, else the inner optimizer's state.
    """
    field, _, part = self.averaged[name]
    if part is not None:
      is_first = part == next(iter(self.fragments))
      return select(tree, params, field, self.fragments[part], is_first)
    if field in state_fields.MODELS:
      return tree, lambda changed: changed
    return state_fields.select_fields(tree, params, {field})

  def in_turn(self, happens: jax.Array, function, *operands):
    """Returns `function` of the operands, which it may change where `happens`.

    A fragment has a conditional of its own: where it has no turn nothing of it is copied.
    """
    if not self.fragments:
      return function(*operands)
    return jax.lax.cond(happens, function, lambda *unchanged: unchanged, *operands)

  def any_params(self, events: Mapping[str, jax.Array]) -> jax.Array:
    """Returns whether an event, by quantity, is one of the parameters."""
    return functools.reduce(jnp.logical_or, [events[name] for name in self.names('params')])

  def time_in_flight(self, name: str, step: jax.Array) -> jax.Array:
    """Returns in how many steps lands what is sent in the update after `step` others."""
    delay = jnp.int32(self.sync_of(name).delay)
    if self.last_step is None:
      return delay
    left = jnp.int32(self.last_step - 1) - step
    return jnp.where(left < 0, delay, jnp.minimum(delay, left))

  def sent(self, due, lands, left, step: jax.Array) -> dict[str, jax.Array]:
    """Returns by quantity whether it is sent: what is due, but for what would be in another's place.

    That waits until the other one has landed. It happens where averages come late, as nobody was
    there before.

    Args:
      due: by quantity, whether it is due.
      lands: of what is delayed, whether it lands now.
      left: of what is delayed, the steps to its landing.
      step: steps done before this one.
    """
    sent = dict(due)
    for name, sharing in self.sharing.items():
      taken = [lands[n] | (left[n] > 0) for n in sharing]
      stays = self.time_in_flight(name, step) > 0
      taken += [sent[n] & stays for n in sharing[: sharing.index(name)]]
      sent[name] &= ~functools.reduce(jnp.logical_or, taken)
    return sent

  @functools.cached_property
  def sharing(self) -> dict[str, list[str]]:
    """By quantity that has a delay those that share its place in flight, itself among them."""
    places = {name: self.place_in_flight(name) for name, s in self.all_syncs.items() if s.delay}
    return {name: [n for n, p in places.items() if p == place] for name, place in places.items()}

  def moved(self, due, lands, step: jax.Array) -> dict[str, jax.Array]:
    """Returns by quantity whether it takes over an average now: what is due, or in flight, lands."""
    at_once = {name: self.time_in_flight(name, step) == 0 for name in lands}
    return due | {name: now | (due[name] & at_once[name]) for name, now in lands.items()}

  @property
  def is_delayed(self) -> bool:
    """Whether anything lands later than it is sent."""
    return any(sync.delay for sync in self.all_syncs.values())

  @property
  def kept(self) -> set[str]:
    """Quantities that land beside what was done since: no mean of values that belong together."""
    return {name for name, sync in self.all_syncs.items() if sync.lands_by.needs_sent}

  @functools.cached_property
  def all_syncs(self) -> dict[str, Sync]:
    """How each quantity crosses the worker axis."""
    return {n: self.syncs.get(quantity.field, mean()) for n, quantity in self.averaged.items()}

  def sync_of(self, name: str) -> Sync:
    """Returns how a quantity crosses the worker axis."""
    return self.all_syncs[name]

  def keeps_sent(self, name: str) -> bool:
    """Whether what was sent stays in the state until it lands."""
    return self.sync_of(name).landing.needs_sent or self.behind

  def place_in_flight(self, name: str) -> str:
    """Returns where it is in flight: fragments that never are so together share a place."""
    field, period, _ = self.averaged[name]
    found = [self.averaged[other].period for other in self.names(field)]
    phases = [each for each in found if isinstance(each, Phased) and each == period]
    in_turn = len(phases) > 1 and least_between(phases) > self.sync_of(name).delay
    return f'{field}-every-{period}' if in_turn else name

  def _check_fragments(self) -> None:
    refused = 'fragments are averaged by themselves, which '
    if self.reset:
      reset = ', '.join(self.reset)
      raise ValueError(f'{refused}fields that are reset with the parameters, {reset}, cannot be.')
    if own := [name for name, sync in self.all_syncs.items() if not sync.agrees]:
      raise ValueError(f'{refused}what has another result on each worker, as {own[0]}, cannot be.')

  def _check_behind(self) -> None:
    refused = 'syncs cannot be exchanged outside of the step'
    if self.health:
      raise ValueError(f'{refused} with a health check, whose vote is a part of it.')
    if self.timing == 'pre':
      raise ValueError(f"{refused} with timing 'pre': what is sent is gone after the step.")
    for name, sync in self.all_syncs.items():
      if not sync.delay:
        raise ValueError(f'{refused}: {name} lands in the step that sends it; give it a delay.')
      if sync.watch:
        raise ValueError(f'{refused}: that of {name} looks at each step (by_tokens); take another.')
      if sync.landing.eager:
        raise ValueError(f'{refused}: {name} lands eagerly, and is gone after the step; take keep.')

  def _check_delay(self, name: str) -> None:
    quantity, sync = self.averaged[name], self.sync_of(name)
    if sync.delay < 0:
      raise ValueError(f'the delay of {name} is {sync.delay}; expected a number of steps >= 0.')
    if sync.landing.eager and quantity.field != 'params':
      raise ValueError(f'{name} cannot land eagerly, as it has no consensus; take keep.')
    if not sync.agrees and (sync.delay or sync.landing != OVERWRITE):
      raise ValueError(
        f'{name} has a result of its own on each worker, which is taken over at once; expected no '
        'delay, and to overwrite.'
      )
    if not sync.delay:
      return
    refused = f'{name} cannot land {sync.delay} steps after it was sent: '
    if self.warmup_steps:
      raise ValueError(f'{refused}in a warm-up it is sent at every step; leave one of the two out.')
    if self.coin_key is not None:
      raise ValueError(f'{refused}by coins the next one may be sent before; take periods.')
    gap = shortest_gap(quantity.period)
    if gap is None:
      raise ValueError(f'{refused}a schedule may send the next one before; take a number of steps.')
    if gap <= sync.delay:
      raise ValueError(
        f'{refused}the next one is sent after {gap}; expected a delay of at most {gap - 1}.'
      )
