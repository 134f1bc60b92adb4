"""Runs over a network whose rate changes while they train: bytes and seconds at each rate."""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
import signal
import time

from desloc_jax.train.metrics import read_metrics
from experiments.several import kill, start, wait_for_step
from experiments.wire.methods import Case, Phase
from experiments.wire.network import Network


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


def measure(network: Network, folder: pathlib.Path, *cases: Case) -> list[list[Window]]:
  """Trains one worker of each case at each site; returns what each of its phases took.

  Several cases take turns of two lines of the log, and wait meanwhile: a machine is not equally fast
  all of the time, and what changes within minutes then slows each of them alike. Before a phase is
  measured there are two more lines, so that no sync of the phase before is among its steps.

  Args:
    network: with a site for each process.
    folder: for the workdirs.
    *cases: of as many sites, with the same phases and as many steps between lines of the log.

  Raises:
    RuntimeError: a process ended.
  """
  network.throttle(None)
  windows: list[list[Window]] = [[] for _ in cases]
  two_lines = 2 * cases[0].log_every
  with contextlib.ExitStack() as stack:
    runs = []
    for number, case in enumerate(cases):
      run = Run(network, folder / str(number), case, takes_turns=len(cases) > 1)
      stack.callback(run.kill)
      run.advance(case.log_every)
      runs.append(run)
    for phase in cases[0].phases:
      network.throttle(phase.megabits)
      for run in runs:
        run.advance(two_lines)
      turn = two_lines if len(runs) > 1 else phase.steps
      sent = [[run.advance(turn) for run in runs] for _ in range(phase.steps // turn)]
      for run, of_run, of_turns in zip(runs, windows, zip(*sent, strict=True), strict=True):
        sent_by_site = [sum(turns) for turns in zip(*of_turns, strict=True)]
        of_run.append(run.window(phase, sent_by_site))
    network.throttle(None)  # The last average and the checkpoint need not be slow.
    for run in runs:
      run.finish()
  return windows


class Run:
  """The processes of one run, each with one worker at a site of its own."""

  def __init__(self, network: Network, workdir: pathlib.Path, case: Case, *, takes_turns: bool):
    """Starts it; one that takes turns waits whenever it need not `advance`."""
    self._network = network
    self._workdir = workdir
    self._takes_turns = takes_turns
    self._step = 0
    self._held_since: float | None = None
    self._held_s: dict[int, float] = {}  # By the line of the log that it waited after.
    # A line more than are read: the end of a run averages the models once more, to evaluate them.
    steps = sum(phase.steps + 2 * case.log_every for phase in case.phases) + 2 * case.log_every
    cores = sorted(os.sched_getaffinity(0))
    # A process that waits would otherwise lend its core to the others, and its step would look
    # shorter. Of one of several devices the threads would wait for each other on that core.
    to_a_core = [
      ['taskset', '-c', str(cores[site % len(cores)])] if case.devices == 1 else []
      for site in range(network.sites)
    ]
    self._processes = start(
      network.sites,
      workdir,
      {**case.options, 'log_every': case.log_every, 'steps': steps, 'eval.every': 0},
      network.sites,
      host=network.address(0),
      before=[network.inside(site) + to_a_core[site] for site in range(network.sites)],
      devices=case.devices,
    )

  def advance(self, steps: int) -> list[int]:
    """Trains for so many steps, whole lines of the log; returns the bytes that each site sent."""
    before = self._network.sent()
    self._go_on()
    self._step += steps
    wait_for_step(self._workdir, self._step, self._processes, timeout=1800)
    if self._takes_turns:
      self._hold()
    return [after - first for after, first in zip(self._network.sent(), before, strict=True)]

  def window(self, phase: Phase, sent: Sequence[int]) -> Window:
    """Returns how long the newest `phase.steps` took as the run measured them, less all waiting."""
    lines = [line for line in read_metrics(self._workdir) if 'tokens_per_s' in line]
    tokens = {line['step']: line['tokens'] for line in lines}
    seconds, local_seconds, local_steps = 0.0, 0.0, 0
    before = self._step - phase.steps
    for line in lines:
      if before < line['step'] <= self._step:
        took = (line['tokens'] - tokens[before]) / line['tokens_per_s']
        took -= self._held_s.get(before, 0)
        seconds += took
        if not line['synced']:
          local_seconds += took
          local_steps += line['step'] - before
        before = line['step']
    return Window(phase, seconds, sent, local_seconds / local_steps if local_steps else None)

  def finish(self) -> None:
    """Waits until all processes are at the end of the run.

    Raises:
      RuntimeError: one failed.
    """
    self._go_on()
    deadline = time.monotonic() + 300
    for process in self._processes:
      process.wait(timeout=max(1, deadline - time.monotonic()))
    if any(process.returncode for process in self._processes):
      raise RuntimeError(f'a process failed: {self.kill()}')

  def kill(self) -> list[str]:
    """Ends all processes at once; returns what they had printed."""
    return kill(self._processes)

  def _hold(self) -> None:
    self._held_since = time.perf_counter()
    for process in self._processes:
      process.send_signal(signal.SIGSTOP)

  def _go_on(self) -> None:
    if self._held_since is not None:
      self._held_s[self._step] = time.perf_counter() - self._held_since
      self._held_since = None
      for process in self._processes:
        process.send_signal(signal.SIGCONT)
