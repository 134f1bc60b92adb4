"""Syncs behind the steps: sent by programs on devices of their own, and landed by a later step.

The step's program says what is due and lands what is in its `Flight`; it sends nothing. What is due
after step t is copied to a device of each process that does nothing else, exchanged there, and put
into the flight before step t + delay, which lands it. Where the network needs longer than the steps
in between, that step waits. So the trajectory is the one of the same delay inside the program, bit
for bit, however fast the network is.
"""

from concurrent import futures
import functools
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from desloc_jax.checkpoints.state import TrainState
from desloc_jax.hosts.aside import exchange_devices
from desloc_jax.hosts.peers import peers
from desloc_jax.optimizer.over_workers import over_workers, worker_specs, WORKERS
from desloc_jax.optimizer.worker_step.outside import (
  Outcome,
  OUTCOME_AXES,
  PARTS_AXES,
  parts_of,
  with_outcome,
)
from desloc_jax.optimizer.worker_step.triggers import steps_until_due
from desloc_jax.options.table import with_presets
from desloc_jax.train.job import Job
from desloc_jax.train.setup.build_optimizer import scheduled_periods
from desloc_jax.train.setup.mesh import place
from desloc_jax.train.speed.moving import to_exchange, to_steps


def make_behind(job: Job, state: TrainState) -> 'Behind | None':
  """Returns what is asked at each step of a run that goes on from `state`; None: syncs are in it."""
  optimizer = job.program.optimizer
  return None if optimizer.tx_of_steps is optimizer.tx else Behind(job, state)


class _Sent(NamedTuple):
  """One quantity on its way."""

  lands: int  # The step that takes it.
  outcome: Outcome  # On the devices that exchange, once it is there.


class Behind:
  """What is sent after each step, and what is there before each; made by `make_behind`.

  Attributes:
    waited_s: seconds that the devices stood still for exchanges, in all.
  """

  def __init__(self, job: Job, state: TrainState):
    """Goes on from a state in which all that is in flight is agreed on."""
    config, optimizer = job.config, job.program.optimizer
    self._job = job
    self._delay = with_presets(config, 'sync')['delay']
    self._periods = scheduled_periods(optimizer.periods, config, job.clock)
    counters = peers().fetch(state.optimizer.counters)
    self._counters = {name: int(counters[name]) for name in state.optimizer.flight.left}
    axis = (AxisType.Auto,)
    self._mesh = Mesh(np.array(exchange_devices()), (WORKERS,), axis_types=axis)
    self._programs = self._compile(state)
    self._sent: dict[str, _Sent] = {}
    self._last_result: Any = None
    self.waited_s = 0.0

  def land(self, step: int, state: TrainState) -> TrainState:
    """Returns the state for `step` with what that lands, once it is there."""
    return self._put_in(state, [name for name, sent in self._sent.items() if sent.lands == step])

  def settle(self, state: TrainState) -> TrainState:
    """Returns the state with the outcome of all that is on its way, as a checkpoint has it."""
    return self._put_in(state, list(self._sent))

  def send(self, step: int, state: TrainState, result: Any) -> None:
    """Sends what is due after `step`, from copies: `state` may be donated.

    Args:
      step: that has been dispatched.
      state: after it.
      result: of it, that is not donated.
    """
    self._last_result = result
    active = self._job.active and self._job.active(step)
    lands = min(step + self._delay, self._job.clock.last_step)
    for name in self._due(step, active) if lands > step else ():  # Else it has landed.
      parts = to_exchange(parts_of(name, state.optimizer, state.params), PARTS_AXES, self._mesh)
      there = active if active is None else place(active, NamedSharding(self._mesh, P()))
      self._sent[name] = _Sent(lands, self._programs[name](parts, there))

  def _due(self, step: int, active: np.ndarray | None) -> list[str]:
    """Returns what is sent after a step, as the step's program finds it."""
    due = []
    if active is not None and not (active * (self._job.config.worker_weights or 1)).any():
      self._counters = {name: count + 1 for name, count in self._counters.items()}
      return due  # Nobody counts.
    for name, count in self._counters.items():
      until = steps_until_due(self._periods[name], count, step - 1, pre=False)
      due += [name] if until == 1 else []
      self._counters[name] = 0 if until == 1 else count + 1
    return due

  def _put_in(self, state: TrainState, names: list[str]) -> TrainState:
    optimizer = state.optimizer
    for name in names:
      outcome = self._sent.pop(name).outcome
      self._wait_for(outcome)
      like = Outcome(optimizer.flight.agreed[name], *parts_of(name, optimizer, state.params)[2:4])
      shardings = jax.tree.map(lambda x: x.sharding, like)
      optimizer = with_outcome(name, optimizer, to_steps(outcome, shardings))
    return state._replace(optimizer=optimizer)

  def _wait_for(self, outcome: Outcome) -> None:
    leaves = jax.tree.leaves(outcome)
    if not all(leaf.is_ready() for leaf in leaves):
      jax.block_until_ready(self._last_result)  # Until then the devices have work.
      start = time.perf_counter()
      jax.block_until_ready(leaves)
      self.waited_s += time.perf_counter() - start

  def _compile(self, state: TrainState) -> dict[str, jax.stages.Compiled]:
    """Returns the exchange of each quantity, compiled side by side before the first step."""
    lowered = {name: self._lower(name, state) for name in self._counters}
    with futures.ThreadPoolExecutor() as threads:
      compiling = {name: threads.submit(each.compile) for name, each in lowered.items()}
    return {name: each.result() for name, each in compiling.items()}

  def _lower(self, name: str, state: TrainState) -> jax.stages.Lowered:
    like = parts_of(name, state.optimizer, state.params)
    axes = (PARTS_AXES, None)
    active = self._job.active and self._job.active(1)

    def of_spec(spec: P, subtree: Any) -> Any:
      sharding = NamedSharding(self._mesh, spec)
      return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), subtree
      )

    specs = worker_specs(axes)
    args = jax.tree.map(of_spec, specs, (like, active), is_leaf=lambda x: isinstance(x, P))
    run = functools.partial(self._job.program.optimizer.tx_of_steps.exchange, name)
    return jax.jit(over_workers(run, self._mesh, axes, OUTCOME_AXES)).lower(*args)
