"""Which workers are suspect: finite, and yet too far from where the others and their past are."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class HealthCheck:
  """When `desloc` leaves a worker out of the averages and restarts it from them.

  A worker is *broken* if one of its parameters, a floating number of its inner state or its loss is
  not finite. It is *suspect*, by d = log ||local - consensus|| at a sync, if

  - *changed*: d is more than log(threshold) above its own past, and rose by so much more than the
    median of the other workers did at this sync; or both fell by three times as much;
  - *beside the others*: d is more than 2 log(threshold) above the median of theirs, whatever its
    past. Only this is asked of a worker that has no past yet;
  - *stuck*: it has not moved at all, while at least half of the workers have;
  - *astray*: in the step after a parameter sync it was not where that sync had left it.

  Guaranteed: what happens to all workers alike (other periods, a warm-up, another learning rate)
  makes none of them suspect. If all would be, none is: a run ends only when no worker is finite. A
  worker whose distance changes by less than `threshold` is never suspect by it. One that settles at
  a level of up to threshold^2 times that of the others is restarted once and then counts, as who is
  restarted (or was away) begins a new record. While none is suspect or broken, the averages are
  those of all workers, as without a check.

  Not noticed: a worker that is finite, was left alone between two syncs, and is as far away as
  usual. One that is put back to old parameters by something else, between steps, counts at one sync
  with them: it is known to be astray from the step after that on.

  EDiT (arXiv:2412.07210) compares the distance with the worker's own past only, by its z-score,
  which ends healthy runs: the scale of all distances changes with the period and the rate.

  Attributes:
    threshold: how many times as far as expected is too far, above 1; infinite: only what is not
      finite is left out. None: nobody is judged; who was away restarts from the averages all the
      same.
    decay: weight of the past in a worker's mean of d over its parameter syncs, in [0, 1).
    warmup_syncs: parameter syncs of a worker before it has a past.

  Raises:
    ValueError: a value is out of range.
  """

  threshold: float | None = 10.0
  decay: float = 0.98
  warmup_syncs: int = 3

  def __post_init__(self):
    too_low = self.threshold is not None and not self.threshold > 1
    if too_low or not 0 <= self.decay < 1 or self.warmup_syncs < 0:
      raise ValueError(f'{self}: expected threshold > 1, decay in [0, 1) and warmup_syncs >= 0.')

  @property
  def judges(self) -> bool:
    """Whether anybody is left out for its health."""
    return self.threshold is not None


class Reports(NamedTuple):
  """What each worker says of itself, float32 [workers] each."""

  weight: jax.Array  # Its weight in averages, 0 where it does not count.
  joined: jax.Array  # 0 or 1, see `Health`.
  follows: jax.Array  # 0 or 1, see `Health`.
  log_distance: jax.Array  # -inf if it has not moved, NaN if it is broken.
  past: jax.Array  # Mean of log_distance; NaN if it has no past yet.


def suspects(check: HealthCheck, reports: Reports, has_stepped: jax.Array | bool) -> jax.Array:
  """Returns boolean [workers]: which are suspect, by the rules of `HealthCheck`?"""
  weight, joined, follows, log_distance, past = reports
  judged = (weight > 0) & (joined > 0) & ~jnp.isnan(log_distance)
  if check.threshold is None or math.isinf(check.threshold):
    return jnp.zeros_like(judged)
  moved = judged & (log_distance > -jnp.inf)
  stuck = ~moved & (moved.sum() > 0) & (2 * moved.sum() >= judged.sum()) & has_stepped
  typical = moved & (follows > 0)
  beside = log_distance - _median_of_others(log_distance, typical)
  change = log_distance - past
  own = change - _median_of_others(change, typical & ~jnp.isnan(past))
  far = math.log(check.threshold)
  runs_away = ((change > far) & (own > far)) | (beside > 2 * far)
  stalls = moved & (change < -3 * far) & (own < -3 * far)
  found = judged & (stuck | runs_away | stalls | ~(follows > 0))
  return found & (found.sum() < judged.sum())


def _median_of_others(values: jax.Array, counted: jax.Array) -> jax.Array:
  """Returns for each worker the median over the others that are counted, NaN if there are none."""
  others = counted & ~jnp.eye(len(values), dtype=bool)
  return jnp.nanmedian(jnp.where(others, values, jnp.nan), axis=1)
