"""Which workers count at a sync: those that are there, and neither broken nor suspect."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.averaging import (
  at_least_float32,
  AxisName,
  match_varying,
  Share,
  worker_count,
)
from desloc_jax.optimizer.suspects import HealthCheck, Reports, suspects


class Health(NamedTuple):
  """The record of one worker."""

  healthy: jax.Array | tuple[()]  # Boolean scalar, of the last sync; empty where nobody is judged.
  joined: jax.Array  # Boolean scalar: at every step since the last parameter sync it was active.
  follows: jax.Array  # Boolean scalar: after the last parameter sync it was where that had left it.
  offset: jax.Array  # float32 scalar: distance from the consensus that the last update left, if it
  # had a parameter sync; else NaN.
  mean: jax.Array  # float32 scalar, of the logarithm of the distance.
  syncs: jax.Array  # int32 scalar: parameter syncs that are in the mean.
  restarts: jax.Array  # int32 scalar: how often it was restarted for bad health.


class Vote(NamedTuple):
  """What the workers agree on before they average."""

  share: Share
  restarts: jax.Array  # Boolean scalar: this worker is to take over the averages.
  any_restarts: jax.Array  # Boolean scalar, the same on all workers.
  donates: jax.Array  # Boolean scalar: who restarts takes from this worker what has no average.
  healthy: jax.Array  # Boolean scalar, of this worker.
  log_distance: jax.Array  # float32 scalar, of this worker; NaN if it is broken.


def init_health(check: HealthCheck) -> Health:
  """Returns the record of a worker that starts with the consensus."""
  zero, none, true = jnp.zeros([], jnp.float32), jnp.zeros([], jnp.int32), jnp.ones([], bool)
  return Health(true if check.judges else (), true, true, _unknown(), zero, none, none)


def judged(health: Health | tuple[()]) -> bool:
  """Returns whether a worker with this record may be left out for its health."""
  return isinstance(health, Health) and not isinstance(health.healthy, tuple)


def look_back(
  health: Health, consensus: optax.Params, local: optax.Params, just_synced: jax.Array
) -> tuple[Health, optax.Params]:
  """Returns the record with `follows` of a worker at the start of a step, and `local` as it is.

  The local step takes its parameters from here: it then comes after they were looked at, and XLA
  lets it write the new ones into their place.

  Args:
    health: of this worker.
    consensus: the shared model.
    local: this worker's own parameters.
    just_synced: boolean scalar, the same on all workers: did the step before average parameters?
  """

  def is_there(health, consensus, local):
    # The caller's sum of consensus and updates may be rounded otherwise than ours.
    rounding = sum(
      jnp.finfo(x.dtype).eps * optax.tree.norm(x.astype(jnp.float32))
      for x in jax.tree.leaves(consensus)
      if jnp.issubdtype(x.dtype, jnp.inexact)
    )
    off = jnp.abs(distance(local, consensus) - health.offset)
    # Where nothing is known, and where nothing is finite, other rules decide.
    there = ~(off > rounding + 1e-3 * health.offset)
    return there, jax.lax.optimization_barrier(local)  # Else JAX sees that it comes out as it is.

  follows, local = jax.lax.cond(
    just_synced,
    is_there,
    lambda health, consensus, local: (health.follows, local),
    health,
    consensus,
    local,
  )
  unknown = match_varying(_unknown(), health.mean)
  return health._replace(follows=health.follows & follows, offset=unknown), local


def look_around(
  health: Health, consensus: optax.Params, local: optax.Params, just_synced: jax.Array
) -> Health:
  """Returns the record with `offset` of a worker at the end of a step that leaves `consensus`."""
  offset = jax.lax.cond(
    just_synced,
    lambda health, *models: distance(*models),
    lambda health, *_: health.offset,
    health,
    local,
    consensus,
  )
  return health._replace(offset=offset)


def skip_step(ballot: Vote, now: jax.Array, before: Any, after: Any) -> Any:
  """Returns the numbers of `before` of a worker that restarts `now`, else all as it is `after`.

  Counts of steps are always as they are `after`. In a conditional, where no worker restarts, so that
  a choice between the two is not compiled into the step, whose roundings it would change.
  """

  def choose(x, y):
    return jnp.where(ballot.restarts, x, y) if jnp.issubdtype(x.dtype, jnp.inexact) else y

  return jax.lax.cond(
    now & ballot.any_restarts,
    lambda before, after: jax.tree.map(choose, before, after),
    lambda _, after: after,
    before,
    after,
  )


def vote(
  check: HealthCheck,
  health: Health,
  consensus: optax.Params,
  local: optax.Params,
  inner_state: optax.OptState,
  value: jax.Array | None,
  has_stepped: jax.Array,
  share: Share | None,
  axis_name: AxisName,
) -> Vote:
  """Returns who counts at this sync; exchanges five numbers of every worker.

  Args:
    check: the thresholds.
    health: of this worker.
    consensus: the shared model.
    local: this worker's own parameters.
    inner_state: its moments.
    value: its loss, if the caller gave one.
    has_stepped: boolean scalar: a worker that restarted at the last parameter sync has moved since.
    share: from weights and active mask; a worker that was not active at every step since the last
      parameter sync does not count at this one either, unless that is true of all.
    axis_name: of the workers.
  """
  weight = jnp.ones([], jnp.float32) if share is None else share.weight
  finite = _all_finite((local, inner_state, value)) if check.judges else True
  # A norm may overflow where no number does.
  log_distance = jnp.minimum(jnp.log(distance(local, consensus)), jnp.float32(89))
  own = Reports(
    weight=weight,
    joined=health.joined,
    follows=health.follows,
    log_distance=jnp.where(finite, log_distance, jnp.nan),
    past=jnp.where(health.syncs >= jnp.maximum(check.warmup_syncs, 1), health.mean, jnp.nan),
  )
  reports, place = _exchange(own, axis_name)
  healthy = jnp.ones_like(reports.weight, bool)
  if check.judges:
    healthy = ~jnp.isnan(reports.log_distance) & ~suspects(check, reports, has_stepped)
  joined = reports.joined > 0
  counts = jnp.where(healthy, reports.weight, 0.0)
  members = jnp.where(joined, counts, 0.0)
  alone = members.sum() == 0  # Nobody stayed all the time: who is here now begins.
  restarts = (reports.weight > 0) & ~(healthy & joined) & ~(alone & healthy)
  counts = jnp.where(alone, counts, members)
  return Vote(
    share=Share(counts[place], counts.sum()),
    restarts=restarts[place],
    any_restarts=restarts.any(),
    donates=place == jnp.argmax(counts > 0),
    healthy=healthy[place],
    log_distance=own.log_distance,
  )


def no_vote(health: Health, axis_name: AxisName) -> Vote:
  """Returns a vote of the same type where nothing is to be averaged."""
  weight = match_varying(jnp.ones([], jnp.float32), health.mean)
  false = jnp.zeros([], bool)
  return Vote(
    share=Share(weight, jnp.full([], worker_count(axis_name), jnp.float32)),
    restarts=match_varying(false, health.mean),
    any_restarts=false,
    donates=match_varying(false, health.mean),
    healthy=match_varying(jnp.ones([], bool), health.mean)
    if isinstance(health.healthy, tuple)
    else health.healthy,
    log_distance=health.mean,
  )


def record(
  check: HealthCheck, health: Health, ballot: Vote, params_due: jax.Array, active: jax.Array | bool
) -> Health:
  """Returns the record of a worker after a sync.

  Args:
    check: the thresholds.
    health: the record before it.
    ballot: of `vote`, or of `no_vote` where nothing was due.
    params_due: boolean scalar: were the parameters due to be averaged?
    active: boolean scalar: does this worker count?
  """
  averaged = params_due & (ballot.share.total > 0)
  # Who was away, or is another than before, has no past that the others shared.
  forgets = averaged & (ballot.restarts | ~health.joined)
  learns = averaged & ~forgets & jnp.isfinite(ballot.log_distance)
  # The first distances count in full, as in a bias-corrected average.
  step = jnp.maximum(jnp.float32(1 - check.decay), 1 / (health.syncs + 1).astype(jnp.float32))
  mean = health.mean + step * (ballot.log_distance - health.mean)
  return Health(
    healthy=ballot.healthy if judged(health) else (),
    joined=jnp.where(averaged, active, health.joined & active),
    follows=health.follows | averaged,
    offset=health.offset,
    mean=jnp.where(learns, mean, jnp.where(forgets, 0, health.mean)),
    syncs=jnp.where(forgets, 0, health.syncs + learns),
    restarts=health.restarts + (averaged & ~ballot.healthy & ballot.restarts),
  )


def distance(local: optax.Params, consensus: optax.Params) -> jax.Array:
  """Returns ||local - consensus||, a float32 scalar."""
  change = optax.tree.sub(at_least_float32(local), at_least_float32(consensus))
  return optax.tree.norm(change).astype(jnp.float32)


def _exchange(own: Reports, axis_name: AxisName) -> tuple[Reports, jax.Array]:
  """Returns the reports of all workers from one of each, and this worker's place among them."""
  place = jax.lax.axis_index(axis_name)
  row = jnp.stack([x.astype(jnp.float32) for x in own])
  # A sum of rows that are zero elsewhere has, unlike a gathered one, the type of what is the same
  # on all workers.
  table = jnp.zeros((worker_count(axis_name), row.size), jnp.float32)
  return Reports(*jax.lax.psum(table.at[place].set(row), axis_name).T), place


def _unknown() -> jax.Array:
  return jnp.full([], jnp.nan, jnp.float32)


def _all_finite(tree: Any) -> jax.Array:
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
  return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()
