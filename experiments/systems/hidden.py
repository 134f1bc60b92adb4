"""What syncs behind the steps cost where they run: turns of a run as `overhead` counts them."""

from collections.abc import Iterator
import time

import jax
import numpy as np

from desloc_jax.hosts.peers import peers
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.options.table import with_presets
from desloc_jax.train.arrivals import Arrivals
from desloc_jax.train.behind import make_behind
from desloc_jax.train.in_flight import InFlight
from desloc_jax.train.inputs import step_inputs
from desloc_jax.train.job import make_job


def is_hidden(config) -> bool:
  """Returns whether the syncs of a configuration are behind its steps."""
  return config.sync.behind and not METHODS[config.method].gradients


def step_times(config, turns: int) -> Iterator[np.ndarray]:
  """Trains without a stop; yields of each turn the seconds of its K_x steps, of this process.

  Nothing else is sent: processes that wait for each other would give exchanges time.
  """
  job, steps = make_job(config), config.periods.params
  state, inputs = job.program.make_state(), step_inputs(job, 0)
  behind, in_flight, arrivals = make_behind(job, state), InFlight(), Arrivals()
  last = time.perf_counter()
  for turn in range(turns):
    for step in range(turn * steps + 1, (turn + 1) * steps + 1):
      state = behind.land(step, state)
      state, metrics = job.train_step(state, *next(inputs))
      behind.send(step, state, metrics)
      arrivals.add(in_flight.add(metrics)['loss'])
    ends = arrivals.take()
    yield np.diff([last, *ends])
    last = ends[-1]
  jax.block_until_ready(behind.settle(state))


def seconds_of_turns(config, turns: int) -> list[tuple[float, float]]:
  """Returns of each turn the seconds of a mean step, and of a local one with nothing on its way.

  The first are those of the slowest process, the second the mean of all. Local ones are from the
  step after a landing to that before the next sync.
  """
  delay = with_presets(config, 'sync')['delay']
  times = np.array(list(step_times(config, turns)))  # [turns, steps]
  of_all = np.array(peers().gather([times.mean(axis=1).tolist(), _local(times, delay).tolist()]))
  return list(zip(of_all[:, 0].max(axis=0), of_all[:, 1].mean(axis=0), strict=True))


def _local(times: np.ndarray, delay: int) -> np.ndarray:
  return times[:, delay + 1 : -1].mean(axis=1)
