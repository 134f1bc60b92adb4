"""Which workers count at a sync: those that are there, finite, and have not run away."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.averaging import AxisName, match_varying, Share, worker_count


@dataclasses.dataclass(frozen=True)
class HealthCheck:
  """When `desloc` leaves a worker out of the averages and restarts it from them.

  A worker whose parameters, inner state or loss are not finite is left out. So is one whose
  distance from the consensus is out of proportion to its own past: the z-score of the logarithm of
  ||local - consensus||, by an exponentially weighted mean and deviation over its parameter syncs,
  is above `threshold`. (EDiT, arXiv:2412.07210, uses the distance itself and a threshold of 3.)

  Attributes:
    threshold: the z-score; infinite: only what is not finite is left out.
    decay: weight of the past in mean and deviation, in [0, 1).
    warmup_syncs: parameter syncs of a worker before its z-score counts.
    least_deviation: what the deviation is taken for if it is smaller; 0.1 is a tenth of the
      distance.

  Raises:
    ValueError: a value is out of range.
  """

  threshold: float = 10.0
  decay: float = 0.98
  warmup_syncs: int = 10
  least_deviation: float = 0.1

  def __post_init__(self):
    if not self.threshold > 0 or not 0 <= self.decay < 1 or not self.least_deviation > 0:
      raise ValueError(f'{self}: expected threshold > 0, decay in [0, 1) and least_deviation > 0.')


class Health(NamedTuple):
  """The record of one worker."""

  healthy: jax.Array  # Boolean scalar, of the last sync.
  joined: jax.Array  # Boolean scalar: at every step since the last parameter sync it was active.
  mean: jax.Array  # float32 scalar, of the logarithm of the distance.
  variance: jax.Array  # float32 scalar, likewise.
  syncs: jax.Array  # int32 scalar: parameter syncs that are in mean and variance.
  restarts: jax.Array  # int32 scalar: how often it was restarted for bad health.


class Vote(NamedTuple):
  """What the workers agree on before they average."""

  share: Share
  restarts: jax.Array  # Boolean scalar: this worker is to take over the averages.
  any_restarts: jax.Array  # Boolean scalar, the same on all workers.
  healthy: jax.Array  # Boolean scalar, of this worker.
  log_distance: jax.Array  # float32 scalar, of this worker.


def init_health() -> Health:
  """Returns the record of a worker that starts with the consensus."""
  zero, none, true = jnp.zeros([], jnp.float32), jnp.zeros([], jnp.int32), jnp.ones([], bool)
  return Health(true, true, zero, zero, none, none)


def vote(
  check: HealthCheck,
  health: Health,
  consensus: optax.Params,
  local: optax.Params,
  inner_state: optax.OptState,
  value: jax.Array | None,
  share: Share | None,
  axis_name: AxisName,
) -> Vote:
  """Returns who counts at this sync; exchanges three numbers a worker.

  Args:
    check: the thresholds.
    health: of this worker.
    consensus: the shared model.
    local: this worker's own parameters.
    inner_state: its moments.
    value: its loss, if the caller gave one.
    share: from weights and active mask; a worker that was not active at every step since the last
      parameter sync does not count at this one either, unless that is true of all.
    axis_name: of the workers.
  """
  weight = jnp.ones([]) if share is None else share.weight
  log_distance = jnp.log(optax.tree.norm(optax.tree.sub(local, consensus)).astype(jnp.float32))
  healthy = _all_finite((local, inner_state, value)) & ~_has_run_away(check, health, log_distance)
  counts = jnp.where(healthy, weight, 0.0)
  member = jnp.where(health.joined, counts, 0.0)
  restarts = (weight > 0) & ~(healthy & health.joined)
  members, all_counts, restarting = jax.lax.psum(
    jnp.stack([member, counts, restarts.astype(jnp.float32)]), axis_name
  )
  alone = members == 0  # Nobody stayed all the time: who is here now begins.
  restarts &= ~(alone & healthy)
  return Vote(
    share=Share(jnp.where(alone, counts, member), jnp.where(alone, all_counts, members)),
    restarts=restarts,
    any_restarts=restarting > 0,
    healthy=healthy,
    log_distance=log_distance,
  )


def no_vote(health: Health, axis_name: AxisName) -> Vote:
  """Returns a vote of the same type where nothing is to be averaged."""
  weight = match_varying(jnp.ones([]), health.mean)
  false = jnp.zeros([], bool)
  return Vote(
    share=Share(weight, jnp.full([], worker_count(axis_name), jnp.float32)),
    restarts=match_varying(false, health.mean),
    any_restarts=false,
    healthy=health.healthy,
    log_distance=health.mean,
  )


def record(
  check: HealthCheck, health: Health, ballot: Vote, params_due: jax.Array, active: jax.Array | bool
) -> Health:
  """Returns the record of a worker after a step.

  Args:
    check: the thresholds.
    health: the record before it.
    ballot: of `vote`, or of `no_vote` where nothing was due.
    params_due: boolean scalar: were the parameters due to be averaged?
    active: boolean scalar: does this worker count?
  """
  joined = health.joined & active
  averaged = params_due & (ballot.share.total > 0)
  learns = averaged & ballot.healthy & jnp.isfinite(ballot.log_distance)
  # The first distances count in full, as in a bias-corrected average.
  step = jnp.maximum(1 - check.decay, 1 / (health.syncs + 1))
  change = ballot.log_distance - health.mean
  variance = (1 - step) * (health.variance + step * change**2)
  return Health(
    healthy=ballot.healthy,
    joined=jnp.where(averaged, active, joined),
    mean=jnp.where(learns, health.mean + step * change, health.mean),
    variance=jnp.where(learns, variance, health.variance),
    syncs=health.syncs + learns,
    restarts=health.restarts + (averaged & ~ballot.healthy & ballot.restarts),
  )


def _has_run_away(check: HealthCheck, health: Health, log_distance: jax.Array) -> jax.Array:
  if math.isinf(check.threshold):
    return jnp.zeros([], bool)
  deviation = jnp.maximum(jnp.sqrt(health.variance), check.least_deviation)
  far = (log_distance - health.mean) / deviation > check.threshold
  return far & (health.syncs >= check.warmup_syncs)


def _all_finite(tree: Any) -> jax.Array:
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
  return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()
