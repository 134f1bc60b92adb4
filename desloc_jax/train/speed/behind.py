"""Syncs behind the steps: sent by programs on devices of their own, and landed by a later step.

The step's program says what is due and lands what is in its `Flight`; it sends nothing. What is due
after step t is copied to a device of each process that does nothing else, exchanged there, and put
into the flight before step t + delay, which lands it. Where the network needs longer than the steps
in between, that step waits. So the trajectory is the one of the same delay inside the program, bit
for bit, however fast the network is.
"""

from collections.abc import Callable
from concurrent import futures
import functools
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import optax

from desloc_jax.checkpoints.train_state import TrainState
from desloc_jax.hosts.aside import exchange_devices
from desloc_jax.hosts.peers import peers
from desloc_jax.optimizer.over_workers import over_workers, worker_specs, WORKERS
from desloc_jax.optimizer.state import DeslocState, WORKER_AXES
from desloc_jax.optimizer.worker_step.outside import Outcome, OUTCOME_AXES, Parts, PARTS_AXES
from desloc_jax.optimizer.worker_step.triggers import steps_until_due
from desloc_jax.options.values import with_presets
from desloc_jax.train.job import Job
from desloc_jax.train.setup.build_periods import scheduled_periods
from desloc_jax.train.setup.mesh import place, shardings
from desloc_jax.train.speed.moving import to_exchange, to_steps


def make_behind(job: Job, state: TrainState) -> 'Behind | None':
  """Returns what is asked at each step of a run that goes on from `state`; None: syncs are in it."""
  optimizer = job.program.optimizer
  return None if optimizer.tx_of_steps is optimizer.tx else Behind(job, state)


class _Sent(NamedTuple):
  """One quantity on its way."""

  lands: int  # The step that takes it.
  outcome: Outcome  # On the devices that exchange, once it is there.


class _Programs(NamedTuple):
  """What is done with one quantity."""

  take: Callable[[DeslocState, optax.Params], Parts]  # On the devices of the steps.
  exchange: Callable[[Parts, jax.Array | None], Outcome]  # On those that exchange.
  put: Callable[[DeslocState, Outcome], DeslocState]  # On those of the steps; the state is donated.
  landing: Outcome  # The shardings that `put` takes.


class Behind:
  """What is sent after each step, and what is there before each; made by `make_behind`.

  Attributes:
    waited_s: seconds that the devices stood still for exchanges, in all.
  """

  def __init__(self, job: Job, state: TrainState):
    """Goes on from a state in which all that is in flight is agreed on."""
    config, optimizer = job.config, job.program.optimizer
    self._job = job
    self._outside = optimizer.tx_of_steps.outside
    self._delay = with_presets(config, 'sync')['delay']
    self._periods = scheduled_periods(optimizer.quantities, config, job.clock)
    here = state.step, state.optimizer.flight.left, state.optimizer.counters
    begun, left, counters = peers().fetch(here)
    self._counters = {name: int(counters[name]) for name in left}
    # Of each that was ever sent the step at which it lands: see `Frame.sent`.
    self._lands = {name: int(begun) + int(steps) for name, steps in left.items()}
    axis = (AxisType.Auto,)
    self._mesh = Mesh(np.array(exchange_devices()), (WORKERS,), axis_types=axis)
    self._programs = self._make_programs(state)
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
    for name in self._due(step, lands, active) if lands > step else ():  # Else it has landed.
      programs = self._programs[name]
      parts = to_exchange(programs.take(state.optimizer, state.params), PARTS_AXES, self._mesh)
      there = active if active is None else place(active, NamedSharding(self._mesh, P()))
      self._sent[name] = _Sent(lands, programs.exchange(parts, there))

  def _due(self, step: int, lands: int, active: np.ndarray | None) -> list[str]:
    """Returns what is sent after a step, as the step's program finds it."""
    due = []
    if active is not None and not (active * (self._job.config.worker_weights or 1)).any():
      self._counters = {name: count + 1 for name, count in self._counters.items()}
      return due  # Nobody counts.
    sharing = self._outside.frame.sharing
    for name, count in self._counters.items():
      until = steps_until_due(self._periods[name], count, step - 1, pre=False)
      if until == 1 and all(self._lands[other] < step for other in sharing[name]):
        due.append(name)
        self._lands[name] = lands
      self._counters[name] = 0 if name in due else count + 1
    return due

  def _put_in(self, state: TrainState, names: list[str]) -> TrainState:
    optimizer = state.optimizer
    for name in names:
      outcome, programs = self._sent.pop(name).outcome, self._programs[name]
      self._wait_for(outcome)
      optimizer = programs.put(optimizer, to_steps(outcome, programs.landing))
    return state._replace(optimizer=optimizer)

  def _wait_for(self, outcome: Outcome) -> None:
    leaves = jax.tree.leaves(outcome)
    if not all(leaf.is_ready() for leaf in leaves):
      jax.block_until_ready(self._last_result)  # Until then the devices have work.
      start = time.perf_counter()
      jax.block_until_ready(leaves)
      self.waited_s += time.perf_counter() - start

  def _make_programs(self, state: TrainState) -> dict[str, _Programs]:
    """Returns those of each quantity, compiled side by side before the first step."""
    exchanges: dict[Any, jax.stages.Lowered] = {}
    made = {name: self._lower(name, state, exchanges) for name in self._counters}
    parts = (part for programs in made.values() for part in programs)
    lowered = {id(part): part for part in parts if isinstance(part, jax.stages.Lowered)}
    with futures.ThreadPoolExecutor() as threads:
      compiling = {key: threads.submit(each.compile) for key, each in lowered.items()}
    compiled = {key: each.result() for key, each in compiling.items()}
    return {
      name: _Programs(*(compiled.get(id(part), part) for part in programs))
      for name, programs in made.items()
    }

  def _lower(self, name: str, state: TrainState, exchanges: dict) -> _Programs:
    """Returns the programs of a quantity before they are compiled.

    Args:
      name: of the quantity.
      state: that the run goes on from.
      exchanges: those that are there; fragments of the same shapes share one.
    """
    outside, optimizer, program = self._outside, state.optimizer, self._job.program
    take, exchange, put = (
      functools.partial(function, name)
      for function in (outside.parts_of, outside.exchange, outside.with_outcome)
    )
    if outside.frame.averaged[name].fragment is None:
      parts = take(optimizer, state.params)
      like = Outcome(optimizer.flight.agreed[name], parts.memory, parts.drift)
      landing = jax.tree.map(lambda x: x.sharding, like)
      return _Programs(take, self._lower_exchange(exchange, parts), put, landing)
    take = over_workers(take, program.mesh, (WORKER_AXES, None), PARTS_AXES)
    parts = jax.eval_shape(take, optimizer, state.params)
    take = jax.jit(take, out_shardings=shardings(program.mesh, parts, PARTS_AXES))
    # Fragments of a field that have the same shapes share an exchange.
    key = outside.frame.averaged[name].field, str(parts)
    if key not in exchanges:
      exchanges[key] = self._lower_exchange(exchange, parts)
    outcome = exchanges[key].out_info
    landing = shardings(program.mesh, outcome, OUTCOME_AXES)
    put = jax.jit(put, donate_argnums=0, out_shardings=program.shardings.optimizer)
    return _Programs(
      take.lower(optimizer, state.params),
      exchanges[key],
      put.lower(optimizer, _placed(outcome, landing)),
      landing,
    )

  def _lower_exchange(self, exchange: Callable[..., Outcome], parts: Parts) -> jax.stages.Lowered:
    axes, active = (PARTS_AXES, None), self._job.active and self._job.active(1)
    of_spec = lambda spec, tree: jax.tree.map(lambda _: NamedSharding(self._mesh, spec), tree)
    is_spec = lambda x: isinstance(x, P)
    where = jax.tree.map(of_spec, worker_specs(axes), (parts, active), is_leaf=is_spec)
    run = jax.jit(over_workers(exchange, self._mesh, axes, OUTCOME_AXES))
    return run.lower(*_placed((parts, active), where))


def _placed(tree: Any, where: Any) -> Any:
  """Returns the shapes of `tree` with these shardings."""
  struct = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(struct, tree, where)
