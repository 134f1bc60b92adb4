"""What syncs behind the steps cost where they run: turns of a run as `overhead` counts them."""

import time

import jax
import numpy as np

from desloc_jax.hosts.peers import peers
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.options.values import with_presets
from desloc_jax.train.job import make_job
from desloc_jax.train.speed.arrivals import Arrivals
from desloc_jax.train.speed.behind import make_behind
from desloc_jax.train.speed.in_flight import InFlight
from desloc_jax.train.speed.inputs import step_inputs


def is_hidden(config) -> bool:
  """Returns whether the syncs of a configuration are behind its steps."""
  return config.sync.behind and not METHODS[config.method].gradients


def step_times(config, turns: int) -> tuple[np.ndarray, np.ndarray]:
  """Trains without a stop.

  Nothing else is sent: processes that wait for each other would give exchanges time.

  Returns:
    Seconds of the steps of this process, [turns, K_x]; and of each turn how long it waited for
    exchanges.
  """
  job, steps = make_job(config), config.periods.params
  state, inputs = job.program.make_state(), step_inputs(job, 0)
  behind, in_flight, arrivals = make_behind(job, state), InFlight(), Arrivals()
  waited = []
  start = time.perf_counter()
  for turn in range(turns):
    for step in range(turn * steps + 1, (turn + 1) * steps + 1):
      state = behind.land(step, state)
      state, metrics = job.train_step(state, *next(inputs))
      behind.send(step, state, metrics)
      arrivals.add(in_flight.add(metrics)['loss'])
    waited.append(behind.waited_s)
  times = np.diff([start, *arrivals.take()]).reshape(turns, steps)
  jax.block_until_ready(behind.settle(state))
  return times, np.diff([0.0, *waited])


def seconds_of_turns(config, turns: int) -> list[tuple[float, float, float]]:
  """Returns of each turn the seconds of a mean step, of its waits, and of a local one.

  The first two are those of the slowest process. Local steps have nothing on its way, from the one
  after a landing to that before the next sync; they are the mean of all processes.
  """
  sync, steps = with_presets(config, 'sync'), config.periods.params
  between = steps // (sync['fragments'] or 1)
  since = np.arange(steps) % between  # Steps since something was sent.
  local = (since > sync['delay']) & (since < between - 1)
  times, waited = step_times(config, turns)
  here = times.mean(axis=1), waited / steps, times[:, local].mean(axis=1)
  of_all = np.array(peers().gather([each.tolist() for each in here]))
  slowest, mean = of_all.max(axis=0), of_all.mean(axis=0)
  return list(zip(slowest[0], slowest[1], mean[2], strict=True))
