"""DES-LOC: local steps of any optax optimizer, each of its states averaged at its own period."""

from collections.abc import Collection, Mapping
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer import (
  health as health_lib,
  moment_guard,
  periods as periods_lib,
  state_fields,
  triggers,
)
from desloc_jax.optimizer.averaging import (
  AxisName,
  from_one,
  match_varying,
  relative_distance,
  worker_count,
  worker_mean,
  worker_share,
)
from desloc_jax.optimizer.syncs.mean import mean
from desloc_jax.optimizer.syncs.sync import Context, Memory, MEMORY_AXES, Sync

TIMINGS = ('post', 'pre')
# The name scope around each sync: the ledger, HLO metadata and profiles find syncs by it.
SYNC_SCOPE = 'desloc_sync_'
# What a health check sends, as quantities beside those that are averaged: the vote before each
# sync, and the averages for workers that restart.
HEALTH, RESTARTS = 'health', 'restarts'


class DeslocState(NamedTuple):
  """State of `desloc` on one worker.

  `params`, `inner`, `drift`, `health` and `memory.own` differ between workers, the others never do:
  see `WORKER_AXES`.
  """

  step: jax.Array  # int32 scalar: updates done.
  # int32 scalars: steps since each quantity was last averaged. -1 is a step too: see `synced`.
  counters: dict[str, jax.Array]
  params: optax.Params  # The worker's own parameters: gradients are taken here.
  inner: optax.OptState  # The worker's own inner optimizer state, with its moments.
  outer: optax.OptState  # The outer optimizer's state, the same on every worker.
  drift: dict[str, jax.Array]  # float32 scalars: ||own - mean|| / ||mean|| at the last sync.
  health: health_lib.Health | tuple[()] = ()  # Empty without a health check.
  memory: Memory = Memory()  # Of the syncs, by quantity; without arrays where all are `mean()`.


# Where a DeslocState varies over workers, as a tree prefix for `jax.vmap`'s in_axes and out_axes.
WORKER_AXES = DeslocState(
  step=None, counters=None, params=0, inner=0, outer=None, drift=0, health=0, memory=MEMORY_AXES
)


def synced(before: DeslocState, after: DeslocState) -> dict[str, jax.Array]:
  """Returns, by name, a boolean scalar: was the quantity averaged in the update between the two?

  With `timing='pre'` a step follows the average. In the first update its counter is 1 without an
  average, and -1 with one.

  Raises:
    ValueError: one of the two is not the state of `desloc` or `ddp`, but that of a wrapper.
  """
  check_state(before)
  check_state(after)
  return {name: after.counters[name] <= abs(before.counters[name]) for name in after.counters}


def check_state(state) -> None:
  """Raises ValueError for a state that is not that of `desloc` or `ddp` itself, but of a wrapper."""
  if not isinstance(state, DeslocState):
    raise ValueError(
      f"the optimizer's state is a {type(state).__name__}, expected a DeslocState: desloc must be "
      'outermost. What is wrapped around it (chain, apply_if_finite, MultiSteps) would change its '
      'updates after local parameters have moved, or run its averages on some workers only: put it '
      'inside, as in desloc(optax.apply_if_finite(inner, 5), periods).'
    )


def copied(state: DeslocState) -> DeslocState:
  """Returns `state` in buffers of its own, so that it can be donated together with the consensus.

  An optimizer's state may hold the parameters themselves, or one array twice.
  """
  return jax.tree.map(jnp.copy, state)


def check_floating(params: optax.Params) -> None:
  """Raises ValueError for parameters that have no gradient and no mean, by their paths."""
  for path, x in jax.tree.leaves_with_path(params):
    if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
      raise ValueError(
        f'params{jax.tree_util.keystr(path)} is {jnp.result_type(x)}; expected floating parameters '
        'only. Keep other arrays out of params, they are the same on every worker.'
      )


def desloc(
  inner: optax.GradientTransformation,
  periods: periods_lib.Periods,
  axis_name: AxisName = 'workers',
  *,
  outer: optax.GradientTransformation | None = None,
  timing: str = 'post',
  reset: Collection[str] = (),
  coin_key: jax.Array | None = None,
  warmup_steps: int = 0,
  health: health_lib.HealthCheck | None = None,
  guard: bool = True,
  syncs: Mapping[str, Sync] | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Trains locally and averages parameters and each optimizer state at its own period.

  Worker :math:`m` steps its own parameters :math:`x^m` with `inner` on its own gradients. Every
  `periods['params']` steps (:math:`K_x`) the parameters are averaged over `axis_name`, and every
  `periods[s]` steps the state field `s` is; nothing else crosses the axis:

  .. math::
    x^m_{t+1} \leftarrow \frac1M \sum_j x^j_{t+1} \text{ if } (t+1) \bmod K_x = 0, \quad
    s^m_{t+1} \leftarrow \frac1M \sum_j s^j_{t+1} \text{ if } (t+1) \bmod K_s = 0

  The `params` that `update` takes, and that `optax.apply_updates` returns, are the *consensus*
  model: the same on every worker, changed by parameter syncs only (`updates` is zero between
  them), and what is to be evaluated and exported. Gradients are to be taken at `state.params`.

  Args:
    inner: any optax transformation; gradient clipping belongs in front of it, in its chain.
    periods: steps between averages of `'params'` and of every floating state field of `inner`, by
      field name (`mu`, `nu`, `trace`, ...) wherever it sits in a chain, partition or mask. None:
      never averaged. Step counts and other integer or scalar states are never averaged. A period
      may be a schedule: a function of the number of updates done, as optax schedules are; or a
      `Timetable`, by which several quantities are averaged together while their periods grow.
    axis_name: the mesh or vmap axis of the workers, or several axes.
    outer: an optax transformation applied at parameter syncs to the pseudo-gradient
      `consensus - mean(local)`. None: plain averaging, as `optax.sgd(1.0)` would. DiLoCo's is
      `optax.sgd(0.7, momentum=0.9, nesterov=True)`.
    timing: `'post'` averages after the local step, so that a sync leaves all workers with the
      parameters of the consensus, bit for bit. (One worker alone, with no `outer`, keeps the bits
      of `inner` instead, and the consensus follows it to within rounding.) `'pre'` is Algorithm 1
      as printed: the previous value is averaged, then the local step (whose gradient was taken
      before the average) is applied.
    reset: state fields that become zero at each parameter sync (FAVG-OPT); their period is None.
    coin_key: None: averages come when the period has passed. A random key: each is drawn at every
      step with probability 1 / period, by a coin a quantity that all workers share, which is the
      form that the paper's theorems are about.
    warmup_steps: in the first so many updates everything, moments without a period too, is averaged
      at every step (K = 1), without `outer` and `reset`; the moments are handed over.
    health: leaves workers that are not finite, have run away or are stuck out of the averages (an
      exchange of 20 bytes for each worker before each sync), and at the next parameter sync
      restarts them, and those that were not `active` since the last one, from the consensus, the
      averaged state fields and the other numbers of one that counts. None: no worker is looked at.
    guard: raises the second moment of Adam and its kin where, after an average of one moment alone,
      it is less than Adam itself could have; else a coordinate that one worker alone has a gradient
      in takes steps of moment / eps. It sends nothing and changes no bit elsewhere; see
      `moment_guard`, also for the moments that it cannot bound.
    syncs: what is sent of each quantity that `periods` names, where it is not the plain mean:
      `{'params': quantised(bits=8)}`, say. A sync of the parameters sends differences from the
      consensus, one of a state field its own values.

  Returns:
    An `optax.GradientTransformationExtraArgs` whose `update` must run inside `axis_name`. Its state
    is a `DeslocState`. `update` takes `weights` [workers] (how much each worker counts in the
    averages) and `active` [workers] (which of them count at all); both are the same on all workers.
    A worker that does not count still receives the averages: that is how it rejoins. If none
    counts, nothing is averaged until one does. Other extra arguments go to `inner`; a loss given as
    `value` counts for `health` too.

  Raises:
    ValueError: here, for a period that is not a whole number >= 1 or an unknown timing; from
      `init`, for a state field without a period or a period or reset without a state field; from
      `update`, for `params=None`, use outside `axis_name`, or `weights` and `active` of another
      shape or (where they are no tracers) by which no worker counts.

  It must be outermost. `optax.MultiSteps` around it would run syncs on every micro-step and discard
  them (accumulate gradients before `update`); `optax.apply_if_finite` would let one worker stay away
  from an average, and spread its NaN (put it inside, or use `health`); a learning rate behind it,
  `chain(desloc(scale_by_adam(), ...), scale(-lr))`, would scale the consensus after the local
  parameters have climbed. `over_workers`, `init_over_workers`, `transform_ledger` and `synced`
  refuse the state of a wrapper. What cannot be seen is an `inner` without its `scale(-lr)`, and a
  gradient that was taken at `params`, not at `state.params`: `local_params` returns the latter.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> tx = desloc(optax.adam(0.1), {'params': 2, 'mu': 4, 'nu': 8})
    >>> params = {'w': jnp.ones(3)}
    >>> state = jax.vmap(lambda: tx.init(params), axis_size=4, out_axes=WORKER_AXES)()
    >>> update = jax.vmap(tx.update, axis_name='workers',
    ...                   in_axes=(0, WORKER_AXES, None), out_axes=(None, WORKER_AXES))
    >>> for step in range(2):  # each worker pulls towards another point
    ...   grads = {'w': state.params['w'] - jnp.arange(4.)[:, None]}
    ...   updates, state = update(grads, state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> bool((state.params['w'] == params['w']).all())
    True

  References:
    Iacob et al., `DES-LOC: Desynced Low Communication Adaptive Optimizers for Training Foundation
    Models <https://arxiv.org/abs/2505.22549>`_, Algorithm 1, 2025
  """
  periods = periods_lib.check_periods(periods)
  if timing not in TIMINGS:
    raise ValueError(f"timing is {timing!r}; expected 'post' or 'pre'.")
  if reset_and_averaged := sorted(name for name in reset if periods.get(name) is not None):
    raise ValueError(f'{", ".join(reset_and_averaged)} cannot be both averaged and reset.')
  if health and periods['params'] is None:
    raise ValueError('a health check needs a period for params: unhealthy workers restart there.')
  if coin_key is not None and any(isinstance(p, periods_lib.Timetable) for p in periods.values()):
    raise ValueError(
      'coins need periods or schedules of them; a timetable leaves nothing to chance.'
    )
  inner = optax.with_extra_args_support(inner)
  averaged = {
    name: period for name, period in periods.items() if period is not None or warmup_steps
  }
  sync_of = dict.fromkeys(averaged, mean()) | dict(syncs or {})
  if unknown := sorted(sync_of.keys() - averaged.keys()):
    raise ValueError(
      f'syncs names {", ".join(unknown)}, which periods does not average; it averages '
      f'{", ".join(averaged) or "nothing"}.'
    )
  counted = [*averaged, *((HEALTH, RESTARTS) if health else ())]
  averaged_fields = [name for name in averaged if name != 'params']

  def init_fn(params: optax.Params) -> DeslocState:
    check_floating(params)
    inner_state = inner.init(params)
    labels = state_fields.label_fields(inner_state, params)
    state_fields.check_fields(labels, {*periods, *reset})
    state = DeslocState(
      step=jnp.zeros([], jnp.int32),
      counters={name: jnp.zeros([], jnp.int32) for name in counted},
      params=params,
      inner=inner_state,
      outer=outer.init(params) if outer else optax.EmptyState(),
      drift={name: jnp.zeros([], jnp.float32) for name in averaged},
      health=health_lib.init_health() if health else (),
      memory=init_memory(params, inner_state),
    )
    return copied(state)

  def init_memory(params, inner_state) -> Memory:
    trees = {'params': params}
    for name in averaged_fields:
      trees[name], _ = state_fields.select_fields(inner_state, params, {name})
    memories = {name: sync_of[name].init(trees[name]) for name in averaged}
    return Memory(*({name: m[i] for name, m in memories.items()} for i in range(2)))

  def local_step(grads, state: DeslocState, **extra_args) -> DeslocState:
    updates, inner_state = inner.update(grads, state.inner, state.params, **extra_args)
    return state._replace(
      counters={name: counter + 1 for name, counter in state.counters.items()},
      params=optax.apply_updates(state.params, updates),
      inner=inner_state,
    )

  def sync(state: DeslocState, consensus: optax.Params, share, value):
    done = state.step + (timing == 'post')
    due = triggers.due_now(averaged, state.counters, state.step, coin_key, warmup_steps, done)
    ballot = None
    if health:
      due[HEALTH] = functools.reduce(jnp.logical_or, due.values())
      ballot, record = take_vote(state, due, consensus, share, value)
      due[RESTARTS] = due['params'] & ballot.any_restarts
      state, share = state._replace(health=record), ballot.share
    if share is not None:
      # The vote was taken, and sent, also where nobody counts.
      due |= {name: now & (share.total > 0) for name, now in due.items() if name != HEALTH}
    context = Context(axis_name, share, state.step)
    state = sync_fields(state, due, consensus, context)
    if health:
      state = restart_fields(state, due[RESTARTS], consensus, ballot)
    updates, state = sync_params(state, due, consensus, context)
    return updates, state._replace(counters=count_anew(state.counters, due)), ballot

  def count_anew(counters, due):
    # A counter is zero here in the first update only, before its step ('pre'): -2 tells an average
    # from none after that step, see `synced`.
    zero = {name: jnp.where(count == 0, -2, 0) for name, count in counters.items()}
    return {name: jnp.where(due[name], zero[name], count) for name, count in counters.items()}

  def take_vote(state: DeslocState, due, consensus, share, value):
    # Before the local step: one that restarted at the step before has had none since.
    has_stepped = state.counters['params'] > (timing == 'pre')
    with jax.named_scope(SYNC_SCOPE + HEALTH):
      ballot = jax.lax.cond(
        due[HEALTH],
        lambda *worker: health_lib.vote(health, *worker, value, has_stepped, share, axis_name),
        lambda record, *_: health_lib.no_vote(record, axis_name),
        *(state.health, consensus, state.params, state.inner),
      )
    active = True if share is None else share.weight > 0
    return ballot, health_lib.record(health, state.health, ballot, due['params'], active)

  def restart_fields(state: DeslocState, due, consensus, ballot) -> DeslocState:
    def take_over(fields, others):
      means = worker_mean(fields, axis_name, ballot.share)
      donated = from_one(others, axis_name, ballot.donates)
      restart = functools.partial(jnp.where, ballot.restarts)
      return jax.tree.map(restart, (means, donated), (fields, others))

    fields, put_back = state_fields.select_fields(state.inner, consensus)
    others, _ = state_fields.select_others(state.inner, consensus)
    with jax.named_scope(SYNC_SCOPE + RESTARTS):
      fields, others = jax.lax.cond(due, take_over, keep, fields, others)
    inner_state = put_back(fields)
    _, put_back = state_fields.select_others(inner_state, consensus)
    return state._replace(inner=put_back(others))

  def sync_fields(state: DeslocState, due, consensus, context) -> DeslocState:
    inner_state, drift, memory = state.inner, dict(state.drift), state.memory
    for name in averaged_fields:
      fields, put_back = state_fields.select_fields(inner_state, consensus, {name})
      with jax.named_scope(SYNC_SCOPE + name):
        fields, drift[name], kept = jax.lax.cond(
          due[name],
          functools.partial(average_field, name, context=context),
          keep,
          fields,
          drift[name],
          memory_of(memory, name),
        )
      memory = with_memory(memory, name, kept)
      inner_state = put_back(fields)
    if guard:
      inner_state = moment_guard.hold(inner_state, bounds_of(inner_state, consensus), due)
    if reset and 'params' in due:
      fields, put_back = state_fields.select_fields(inner_state, consensus, reset)
      zeroed = due['params'] & (state.step >= warmup_steps)
      inner_state = put_back(jax.lax.cond(zeroed, zero_fields, lambda fields: fields, fields))
    return state._replace(inner=inner_state, drift=drift, memory=memory)

  def bounds_of(inner_state, consensus) -> moment_guard.Bounds:
    independent = coin_key is not None
    return moment_guard.find_bounds(inner, inner_state, consensus, periods, independent)

  def average_field(name, local, drift, memory, context):
    agreed, drift, memory = agree(name, local, None, drift, memory, context)
    return match_varying(agreed, local), drift, memory

  def agree(name, local, reference, drift, memory, context):
    agreed, after = sync_of[name].reduce(local, reference, memory, context)
    after = after._replace(own=match_varying(after.own, memory.own))
    return agreed, match_varying(relative_distance(local, agreed), drift), after

  def memory_of(memory: Memory, name) -> Memory:
    return Memory(memory.own[name], memory.shared[name])

  def with_memory(memory: Memory, name, one: Memory) -> Memory:
    return Memory(memory.own | {name: one.own}, memory.shared | {name: one.shared})

  def zero_fields(local):
    return match_varying(optax.tree.zeros_like(local), local)

  def keep(*operands):
    return operands

  def sync_params(state: DeslocState, due, consensus, context):
    if 'params' not in averaged:
      return optax.tree.zeros_like(consensus), state
    with jax.named_scope(SYNC_SCOPE + 'params'):
      updates, outer_state, drift, kept = jax.lax.cond(
        due['params'],
        functools.partial(outer_step, context=context),
        skip_outer_step,
        consensus,
        state.params,
        state.outer,
        state.drift['params'],
        memory_of(state.memory, 'params'),
      )
      state = state._replace(
        outer=outer_state,
        drift=state.drift | {'params': drift},
        memory=with_memory(state.memory, 'params', kept),
      )
      if outer is None and worker_count(axis_name) == 1:
        return updates, state  # One worker is its own mean; consensus + updates may round off it.
      # Local parameters become the consensus itself: local + (mean - local) would round differently
      # on each worker. In a conditional of its own, the sum cannot be contracted with the product
      # behind `updates` to a fused multiply-add, and has the bits of the caller's apply_updates.
      local = jax.lax.cond(
        due['params'],
        follow_consensus,
        lambda local, *_: local,
        state.params,
        consensus,
        updates,
      )
    return updates, state._replace(params=local)

  def outer_step(consensus, local, outer_state, drift, memory, context):
    agreed, drift, memory = agree('params', local, consensus, drift, memory, context)
    averaging = optax.tree.sub(agreed, consensus), outer_state
    if outer is None:
      return *averaging, drift, memory
    stepped = outer.update(optax.tree.sub(consensus, agreed), outer_state, consensus)
    if warmup_steps:
      stepped = optax.tree.where(context.round < warmup_steps, averaging, stepped)
    updates, outer_state = stepped
    # An outer optimizer may compute in a wider dtype than that of the parameters.
    updates = jax.tree.map(lambda u, x: u.astype(x.dtype), updates, consensus)
    return updates, outer_state, drift, memory

  def skip_outer_step(consensus, local, outer_state, drift, memory):
    return optax.tree.zeros_like(consensus), outer_state, drift, memory

  def follow_consensus(local, consensus, updates):
    return match_varying(optax.apply_updates(consensus, updates), local)

  def just_synced(state: DeslocState) -> jax.Array:
    return abs(state.counters['params']) == (timing == 'pre')

  def update_fn(grads, state: DeslocState, params=None, *, weights=None, active=None, **extra_args):
    if params is None:
      raise ValueError(
        'desloc.update needs params, the consensus model: update(grads, state, params).'
      )
    worker_count(axis_name)  # Raises outside the axis.
    share = worker_share(axis_name, weights, active)
    value = extra_args.get('value')
    state = state._replace(counters=jax.tree.map(abs, state.counters))
    if health:
      record = health_lib.look_back(state.health, params, state.params, just_synced(state))
      state = state._replace(health=record)
    if timing == 'pre':
      updates, state, ballot = sync(state, params, share, value)
      stepped = local_step(grads, state, **extra_args)
      if ballot is not None:  # The gradient of a worker that restarts was taken elsewhere.
        before, after = (state.params, state.inner), (stepped.params, stepped.inner)
        kept = health_lib.skip_step(ballot, state.counters['params'] <= 0, before, after)
        stepped = stepped._replace(params=kept[0], inner=kept[1])
      state = stepped
    else:
      state = local_step(grads, state, **extra_args)
      updates, state, _ = sync(state, params, share, value)
    if health:
      record = health_lib.look_around(
        state.health, params, updates, state.params, just_synced(state)
      )
      state = state._replace(health=record)
    return updates, state._replace(step=state.step + 1)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
