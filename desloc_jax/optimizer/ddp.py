"""Data-parallel training, the baseline: gradients averaged over workers at every step."""

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.averaging import (
  all_axes,
  AxisName,
  worker_count,
  worker_mean,
  worker_share,
)
from desloc_jax.optimizer.state import check_floating, copied, DeslocState
from desloc_jax.optimizer.stepping import SteppingTransformation
from desloc_jax.optimizer.worker_step.frame import SYNC_SCOPE


def ddp(
  inner: optax.GradientTransformation, axis_name: AxisName = 'workers'
) -> SteppingTransformation:
  """Averages gradients over `axis_name` at every step and updates the one shared model.

  Its state has `desloc`'s type, so that the same training loop runs both. Nothing in it differs
  between workers: the optimizer's state is in `outer`, and `params` is None, because gradients are
  taken at the consensus itself (see `local_params`).

  Args:
    inner: any optax transformation, applied to the mean gradient.
    axis_name: the mesh or vmap axis of the workers, or several axes.

  Returns:
    A `SteppingTransformation` whose `update` and `step` must run inside `axis_name`. They take
    `weights` and `active` as `desloc`'s does; where no worker counts the model and the optimizer's
    state stay as they are, and nothing counts as averaged.

  Raises:
    ValueError: as `desloc` does.
  """
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    check_floating(params)
    state = DeslocState(
      step=jnp.zeros([], jnp.int32),
      counters={'gradients': jnp.zeros([], jnp.int32)},  # Steps since the latest average.
      params=None,
      inner=optax.EmptyState(),
      outer=inner.init(params),
      drift={},
    )
    return copied(state)

  def update_fn(grads, state, params=None, *, weights=None, active=None, **extra_args):
    axes = all_axes(axis_name)
    worker_count(axes)  # Raises outside the axis.
    share = worker_share(axes, weights, active)
    with jax.named_scope(SYNC_SCOPE + 'gradients'):
      grads = worker_mean(grads, axes, share)
    updates, inner_state = inner.update(grads, state.outer, params, **extra_args)
    counters = state.counters
    if share is not None:
      counts = share.total > 0
      updates = optax.tree.where(counts, updates, optax.tree.zeros_like(updates))
      inner_state = optax.tree.where(counts, inner_state, state.outer)
      counters = {name: jnp.where(counts, 0, count + 1) for name, count in counters.items()}
    return updates, state._replace(step=state.step + 1, counters=counters, outer=inner_state)

  def step_fn(grads, state, params, **extra_args):
    updates, state = update_fn(grads, state, params, **extra_args)
    return optax.apply_updates(params, updates), state

  return SteppingTransformation(init_fn, update_fn, step_fn)


def local_params(state: DeslocState, consensus: optax.Params) -> optax.Params:
  """Returns the parameters at which a worker takes its gradients, for `desloc` and `ddp` alike."""
  return consensus if state.params is None else state.params
