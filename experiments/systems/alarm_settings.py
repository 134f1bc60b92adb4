"""What happens to the workers in `experiments.systems.alarms`: to healthy ones, and to one that breaks."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from desloc_jax.checkpoints.train_state import TrainState

BREAKS_AT, BACK = 150, 40  # The step after which a worker breaks; steps that it is put back by.
SYNC = 144  # The last sync before, where K_x is the 16 of configs/tiny.py.
WORKER = 2  # The one that breaks, or has another level.

# Changes the state after a step; `past` holds the broken worker's parameters after earlier steps.
Edit = Callable[[int, TrainState, Mapping[int, Any]], TrainState]


@dataclasses.dataclass(frozen=True)
class Setting:
  """One run, with and without the check.

  Attributes:
    name: what happens.
    options: that differ from the experiment's own, by dotted name.
    broken: whether worker `WORKER` is to be left out; else no worker is.
    edit: applied to the state after each step.
    halfway: options from the middle of the run on, as after a restart with them.
    narrow: worker `WORKER` reads one of the sequences of its batch in place of all, from
      `BREAKS_AT` on: its gradient has sqrt(batch_size) times the noise.
  """

  name: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  broken: bool = False
  edit: Edit | None = None
  halfway: Mapping[str, Any] | None = None
  narrow: bool = False


def own_params(state: TrainState) -> Any:
  """Returns the parameters of worker `WORKER`."""
  return jax.tree.map(lambda x: x[WORKER], state.optimizer.params)


def _put(tree: Any, value: Any) -> Any:
  """Returns a tree of [workers, ...] with the row of `WORKER` replaced, on the same devices."""
  return jax.tree.map(lambda x, y: jax.device_put(x.at[WORKER].set(y), x.sharding), tree, value)


def _with_params(state: TrainState, value: Any) -> TrainState:
  return state._replace(
    optimizer=state.optimizer._replace(params=_put(state.optimizer.params, value))
  )


def _at_once(change: Callable[[TrainState], TrainState]) -> Edit:
  return lambda step, state, past: change(state) if step == BREAKS_AT else state


def _from_then(change: Callable[[int, TrainState, Mapping[int, Any]], TrainState]) -> Edit:
  return lambda step, state, past: change(step, state, past) if step >= BREAKS_AT else state


def _scaled(factor: float) -> Callable[[TrainState], TrainState]:
  return lambda state: _with_params(state, jax.tree.map(lambda x: x * factor, own_params(state)))


def _nan_moments(state: TrainState) -> TrainState:
  nan = lambda x: jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else x[WORKER]
  inner = state.optimizer.inner
  inner = _put(inner, jax.tree.map(nan, inner))
  return state._replace(optimizer=state.optimizer._replace(inner=inner))


def _frozen(step: int, state: TrainState, past: Mapping[int, Any]) -> TrainState:
  """The parameters stay those after the last sync."""
  del step
  return _with_params(state, past[SYNC])


def _put_back(step: int, state: TrainState, past: Mapping[int, Any]) -> TrainState:
  return _with_params(state, past[max(step - BACK, min(past))])


def _long_steps(step: int, state: TrainState, past: Mapping[int, Any]) -> TrainState:
  """A step of SGD with a gradient of 1000 times the size."""
  stretch = lambda x, y: y + 1000 * (x - y)
  return _with_params(state, jax.tree.map(stretch, own_params(state), past[step - 1]))


def _one_long_step(step: int, state: TrainState, past: Mapping[int, Any]) -> TrainState:
  return _long_steps(step, state, past) if step == BREAKS_AT else state


_SGD = {'inner.name': 'sgd', 'inner.learning_rate': 0.1, 'inner.clip_norm': 0.0}
_ERAS = {
  'data.sources.text.where': 'year:1790-1902',
  'data.sources.late.path': 'sotu',
  'data.sources.late.where': 'year:1903-2099',
}

SETTINGS = (
  Setting('warm-up, then K_x = 64', {'sync_warmup_steps': 300, 'periods.params': 64}),
  Setting('warm-up, then K_x = 16', {'sync_warmup_steps': 300, 'periods.params': 16}),
  Setting('K_x from 2 to 128 at a restart', {'periods.params': 2}, halfway={'periods.params': 128}),
  Setting('K_x from 128 to 2 at a restart', {'periods.params': 128}, halfway={'periods.params': 2}),
  Setting('periods that grow to 32 times', {'periods.params': 2, 'period_growth': 32.0}),
  Setting('cosine to zero, K_x = 8', {'schedule.name': 'cosine', 'periods.params': 8}),
  Setting('averages by coins', {'stochastic': True, 'periods.params': 8}),
  Setting(
    'averages before the step, warm-up',
    {'timing': 'pre', 'sync_warmup_steps': 300, 'periods.params': 64},
  ),
  Setting('SGD, no clipping', {**_SGD, 'periods.params': 8}),
  Setting(
    'two leave together, come back',
    {'periods.params': 8, 'failures.away': '0-1:100-299, 2:350-351, 1-3:500-600'},
  ),
  Setting('one with 4x the noise', {'periods.params': 8, 'batch_size': 16}, narrow=True),
  Setting(
    'one with 4x the noise, SGD', {**_SGD, 'periods.params': 8, 'batch_size': 16}, narrow=True
  ),
  Setting('two workers, warm-up', {'workers': 2, 'sync_warmup_steps': 300, 'periods.params': 64}),
  Setting('NaN in the parameters', {}, True, _at_once(_scaled(float('nan')))),
  Setting('NaN in the moments', {}, True, _at_once(_nan_moments)),
  Setting('parameters x 1000, once', {}, True, _at_once(_scaled(1e3))),
  Setting(
    'parameters x 1000, at every step',
    {},
    True,
    _from_then(lambda t, state, _: _scaled(1e3)(state)),
  ),
  Setting('frozen at an old consensus', {}, True, _from_then(_frozen)),
  Setting(f'put back by {BACK} steps at every step', {}, True, _from_then(_put_back)),
  Setting('a gradient x 1000 once, SGD', _SGD, True, _one_long_step),
  Setting('gradients x 1000 from then, SGD', _SGD, True, _from_then(_long_steps)),
  Setting('frozen, averages before the step', {'timing': 'pre'}, True, _from_then(_frozen)),
)
