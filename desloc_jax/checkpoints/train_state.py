"""Everything that a run is resumed from, besides its place in the data."""

from typing import NamedTuple

import jax
import optax

from desloc_jax.optimizer.state import DeslocState, WORKER_AXES


class TrainState(NamedTuple):
  """Everything that a run is resumed from, besides the data position."""

  step: jax.Array  # int32 scalar: steps done.
  params: optax.Params  # The consensus model, the same on every worker.
  optimizer: DeslocState  # With the worker's own parameters and moments, [workers, ...].
  syncs: dict[str, jax.Array]  # int32 scalars: averages of each quantity so far.


STATE_AXES = TrainState(step=None, params=None, optimizer=WORKER_AXES, syncs=None)
