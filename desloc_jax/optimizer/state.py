"""The state of `desloc` and `ddp`, and what is read off two of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.health import Health
from desloc_jax.optimizer.syncs.sync import Memory, MEMORY_AXES
from desloc_jax.optimizer.worker_step.flight import Flight, FLIGHT_AXES


class DeslocState(NamedTuple):
  """State of `desloc` on one worker.

  `params`, `inner`, `drift`, `health`, `memory.own` and `flight.sent` differ between workers, the
  others never do: see `WORKER_AXES`.
  """

  step: jax.Array  # int32 scalar: updates done.
  # int32 scalars: steps since each quantity was last averaged. -1 is a step too: see `synced`.
  counters: dict[str, jax.Array]
  params: optax.Params  # The worker's own parameters: gradients are taken here.
  inner: optax.OptState  # The worker's own inner optimizer state, with its moments.
  outer: optax.OptState  # The outer optimizer's state, the same on every worker.
  drift: dict[str, jax.Array]  # float32 scalars: ||own - mean|| / ||mean|| at the last sync.
  health: Health | tuple[()] = ()  # Empty without a health check.
  memory: Memory = Memory()  # Of the syncs, by quantity; without arrays where all are `mean()`.
  flight: Flight = Flight()  # Syncs that have not landed; without arrays where none has a delay.


# Where a DeslocState varies over workers, as a tree prefix for `jax.vmap`'s in_axes and out_axes.
WORKER_AXES = DeslocState(
  step=None,
  counters=None,
  params=0,
  inner=0,
  outer=None,
  drift=0,
  health=0,
  memory=MEMORY_AXES,
  flight=FLIGHT_AXES,
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


def landed(before: DeslocState, after: DeslocState) -> dict[str, jax.Array]:
  """Returns as `synced` does: did the quantity take over in that update what was agreed on?

  It is `synced` where the sync has no delay.
  """
  found = synced(before, after)
  for name, left in dict(before.flight.left).items():
    found[name] = (left == 1) | (found[name] & (after.flight.left[name] == 0))
  return found


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
