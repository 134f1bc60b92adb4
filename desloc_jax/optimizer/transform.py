"""DES-LOC: local steps of any optax optimizer, each of its states averaged at its own period."""

from collections.abc import Collection, Mapping
import functools

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer import state_fields
from desloc_jax.optimizer.averaging import AxisName
from desloc_jax.optimizer.fragments import check_fragments, Fragment
from desloc_jax.optimizer.health import HealthCheck, init_health
from desloc_jax.optimizer.state import check_floating, copied, DeslocState
from desloc_jax.optimizer.stepping import SteppingTransformation
from desloc_jax.optimizer.sync_periods import Periods
from desloc_jax.optimizer.syncs.sync import Sync
from desloc_jax.optimizer.worker_step.advance import advance
from desloc_jax.optimizer.worker_step.consensus import init_outer, MODEL, UPDATES
from desloc_jax.optimizer.worker_step.exchange import init_memory, quantities
from desloc_jax.optimizer.worker_step.flight import init_flight
from desloc_jax.optimizer.worker_step.frame import Frame
from desloc_jax.optimizer.worker_step.outside import Outside


def desloc(
  inner: optax.GradientTransformation,
  periods: Periods,
  axis_name: AxisName = 'workers',
  *,
  outer: optax.GradientTransformation | None = None,
  timing: str = 'post',
  reset: Collection[str] = (),
  coin_key: jax.Array | None = None,
  warmup_steps: int = 0,
  health: HealthCheck | None = None,
  guard: bool = True,
  syncs: Mapping[str, Sync] | None = None,
  last_step: int | None = None,
  behind: bool = False,
  fragments: Mapping[str, Fragment] | None = None,
) -> SteppingTransformation:
  r"""Trains locally and averages parameters and each optimizer state at its own period.

  Worker :math:`m` steps its own parameters :math:`x^m` with `inner` on its own gradients. Every
  `periods['params']` steps (:math:`K_x`) the parameters are averaged over `axis_name`, and every
  `periods[s]` steps the state field `s` is; nothing else crosses the axis:

  .. math::
    x^m_{t+1} \leftarrow \frac1M \sum_j x^j_{t+1} \text{ if } (t+1) \bmod K_x = 0, \quad
    s^m_{t+1} \leftarrow \frac1M \sum_j s^j_{t+1} \text{ if } (t+1) \bmod K_s = 0

  The `params` that `step` takes and returns are the *consensus* model: the same on every worker,
  changed by parameter syncs only, and what is to be evaluated and exported. Gradients are to be
  taken at `state.params`. `update` is the same by optax's contract (its updates are zero between
  syncs), at two more passes over the consensus in every step.

  Args:
    inner: any optax transformation; gradient clipping belongs in front of it, in its chain.
    periods: steps between averages of `'params'` and of every floating state field of `inner`, by
      field name (`mu`, `nu`, `trace`, ...) wherever it sits in a chain, partition or mask. None:
      never averaged. Step counts and other integer or scalar states are never averaged. A period
      may be a schedule: a function of the number of updates done, as optax schedules are; or a
      `Timetable`, by which several quantities are averaged together while their periods grow. Where
      workers do not agree on parameters, as in `gossip`, `'consensus'` is the steps between those at
      which the mean of local parameters becomes the consensus; they stay as they are.
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
      consensus, one of a state field its own values. With a `delay`,
      `mean()._replace(delay=4, landing=keep())`, it lands so many steps after it is sent; the
      consensus and the outer optimizer move when it does.
    last_step: number of updates after which nothing stays in flight: what is sent shortly before
      lands at it. None: there is no last one.
    behind: sends nothing: what is due is exchanged by another program, by the `outside` of the
      result, and lands by its sync's delay; see `outside`.
    fragments: parts of the parameters, with their moments, that are averaged by themselves, by name;
      see `fragments.cut`. A counter, drift, memory is then of 'params-NAME', 'mu-NAME', ...,
      and the outer optimizer has a state for each.

  Returns:
    A `SteppingTransformation` whose `update` and `step` must run inside `axis_name`. Its state is a
    `DeslocState`. They take `weights` [workers] (how much each worker counts in the
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
    >>> from desloc_jax import WORKER_AXES
    >>> tx = desloc(optax.adam(0.1), {'params': 2, 'mu': 4, 'nu': 8})
    >>> params = {'w': jnp.ones(3)}
    >>> state = jax.vmap(lambda: tx.init(params), axis_size=4, out_axes=WORKER_AXES)()
    >>> step = jax.vmap(tx.step, axis_name='workers',
    ...                 in_axes=(0, WORKER_AXES, None), out_axes=(None, WORKER_AXES))
    >>> for t in range(2):  # each worker pulls towards another point
    ...   grads = {'w': state.params['w'] - jnp.arange(4.)[:, None]}
    ...   params, state = step(grads, state, params)
    >>> bool((state.params['w'] == params['w']).all())
    True

  References:
    Iacob et al., `DES-LOC: Desynced Low Communication Adaptive Optimizers for Training Foundation
    Models <https://arxiv.org/abs/2505.22549>`_, Algorithm 1, 2025
  """
  frame = Frame(
    inner=optax.with_extra_args_support(inner),
    periods=periods,
    axis_name=axis_name,
    outer=outer,
    timing=timing,
    reset=reset,
    coin_key=coin_key,
    warmup_steps=warmup_steps,
    health=health,
    guard=guard,
    syncs=syncs or {},
    last_step=last_step,
    behind=behind,
    fragments=fragments or {},
  )
  update, step = (functools.partial(advance, frame, form) for form in (UPDATES, MODEL))
  outside = Outside(frame) if behind else None
  return SteppingTransformation(functools.partial(_init, frame), update, step, outside)


def _init(frame: Frame, params: optax.Params) -> DeslocState:
  check_floating(params)
  if frame.fragments:
    check_fragments(frame.fragments, params)
  inner_state = frame.inner.init(params)
  labels = state_fields.label_fields(inner_state, params)
  state_fields.check_fields(labels, {*frame.periods, *frame.reset})
  trees = quantities(frame, params, inner_state)
  state = DeslocState(
    step=jnp.zeros([], jnp.int32),
    counters={name: jnp.zeros([], jnp.int32) for name in frame.counted},
    params=params,
    inner=inner_state,
    outer=init_outer(frame, params),
    drift={name: jnp.zeros([], jnp.float32) for name in frame.averaged},
    health=init_health(frame.health) if frame.health else (),
    memory=init_memory(frame, trees),
    flight=init_flight(frame, trees),
  )
  return copied(state)
