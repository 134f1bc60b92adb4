"""One run over a network whose rate changes while it trains: bytes and seconds at each rate."""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import os
import pathlib
import subprocess
import time

from desloc_jax.logs.metrics import read_metrics
from experiments.several import config_arguments, kill, start, start_command, wait_for_step
from experiments.systems.overhead import Turn
from experiments.systems.wire.network import Network


@dataclasses.dataclass(frozen=True)
class Phase:
  """A part of a run at one rate.

  Attributes:
    megabits: 1e6 bits a second that each process can send; None: not throttled.
    steps: that are measured.
  """

  megabits: float | None
  steps: int


@dataclasses.dataclass(frozen=True)
class Window:
  """What was measured in one phase.

  Attributes:
    phase: which.
    seconds: that its steps took.
    sent: bytes that each process sent meanwhile, headers of packets included.
    local_step_s: seconds of a step in those lines of the log without any average; None if all have.
  """

  phase: Phase
  seconds: float
  sent: Sequence[int]
  local_step_s: float | None = None

  @property
  def step_s(self) -> float:
    return self.seconds / self.phase.steps

  @property
  def bytes_per_step(self) -> float:
    """Of one process, the mean of all."""
    return sum(self.sent) / len(self.sent) / self.phase.steps


def measure(
  network: Network,
  workdir: pathlib.Path,
  options: Mapping[str, object],
  phases: Sequence[Phase],
  *,
  log_every: int,
  devices: int = 1,
) -> list[Window]:
  """Trains one worker at each site; returns what it took. One of one device keeps to a core.

  Before a phase is measured it runs for two lines of the log, so that no sync of the phase before
  is among its steps.

  Args:
    network: with a site for each process.
    workdir: of the run.
    options: of the config, by dotted name.
    phases: whose steps are multiples of `log_every`.
    log_every: steps between lines of the log, by which steps are told apart.
    devices: virtual CPU devices of each process.

  Raises:
    RuntimeError: a process ended.
  """
  # A line more than are read: the end of a run averages the models once more, to evaluate them.
  steps = sum(phase.steps + 2 * log_every for phase in phases) + 2 * log_every
  options = {**options, 'log_every': log_every, 'steps': steps, 'eval.every': 0}
  network.throttle(None)
  processes = start(
    network.sites,
    workdir,
    options,
    network.sites,
    host=network.address(0),
    before=_places(network, devices),
    devices=devices,
  )
  try:
    wait_for_step(workdir, log_every, processes)
    step, windows = log_every, []
    for phase in phases:
      network.throttle(phase.megabits)
      step += 2 * log_every
      wait_for_step(workdir, step, processes)
      before = network.sent()
      step += phase.steps
      wait_for_step(workdir, step, processes, timeout=1800)
      sent = [after - first for after, first in zip(network.sent(), before, strict=True)]
      windows.append(Window(phase, sent=sent, **_seconds(workdir, step - phase.steps, step)))
    network.throttle(None)  # The last average and the checkpoint need not be slow.
    wait_for_ends(processes, timeout=300)
  finally:
    kill(processes)
  return windows


def measure_overhead(
  network: Network,
  folder: pathlib.Path,
  options: Mapping[str, object],
  megabits: float,
  *,
  whole: bool = False,
) -> list[Turn]:
  """Trains one worker at each site for one cycle of turns (`experiments.systems.overhead`).

  Args:
    network: with a site for each process.
    folder: that is made for it.
    options: of the config, by dotted name.
    megabits: of the links.
    whole: see `Network.throttle`.

  Raises:
    RuntimeError: a process failed.
  """
  network.throttle(megabits, whole=whole)
  folder.mkdir()
  table = folder / 'overhead.csv'
  arguments = config_arguments('configs/tiny.py', options, network.sites)
  processes = start_command(
    ['-m', 'experiments.systems.overhead', '--cycles=1', f'--csv={table}', *arguments],
    network.sites,
    host=network.address(0),
    before=_places(network),
  )
  try:
    wait_for_ends(processes, timeout=1800)
  finally:
    kill(processes)
  with table.open(newline='') as file:
    rows = list(csv.DictReader(file))
  seconds = lambda value: float(value) if value else None  # Empty: nothing waits there.
  return [Turn(**{name: seconds(value) for name, value in row.items()}) for row in rows]


def _places(network: Network, devices: int = 1) -> list[list[str]]:
  """Returns for each process what puts it at its site and, with one device, on a core."""
  cores = sorted(os.sched_getaffinity(0))
  # A process that waits would otherwise lend its core to the others, and its step would look
  # shorter. Of several devices the threads would wait for each other on that core.
  to_a_core = lambda site: ['taskset', '-c', str(cores[site % len(cores)])] if devices == 1 else []
  return [network.inside(site) + to_a_core(site) for site in range(network.sites)]


def _seconds(workdir: pathlib.Path, start_step: int, stop: int) -> dict[str, float | None]:
  """Returns how long the steps after `start_step` up to `stop` took, as the run measured them."""
  lines = [line for line in read_metrics(workdir) if 'tokens_per_s' in line]
  tokens = {line['step']: line['tokens'] for line in lines}
  seconds, local_seconds, local_steps, before = 0.0, 0.0, 0, start_step
  for line in lines:
    if start_step < line['step'] <= stop:
      took = (line['tokens'] - tokens[before]) / line['tokens_per_s']
      seconds += took
      if not line['synced']:
        local_seconds += took
        local_steps += line['step'] - before
      before = line['step']
  return {'seconds': seconds, 'local_step_s': local_seconds / local_steps if local_steps else None}


def wait_for_ends(processes: Sequence[subprocess.Popen], timeout: float) -> None:
  deadline = time.monotonic() + timeout
  for process in processes:
    process.wait(timeout=max(1, deadline - time.monotonic()))
  if any(process.returncode for process in processes):
    raise RuntimeError(f'a process failed: {kill(processes)}')
