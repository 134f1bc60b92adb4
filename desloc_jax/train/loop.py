"""The training loop: dispatch steps, log, evaluate, checkpoint.

`restore.py` says how a run begins or goes on. Lines of metrics.jsonl from after the step that it
goes on from are dropped: they will be written again.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
from ml_collections import config_dict

from desloc_jax.checkpoints.renaming import check_renaming
from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.checkpoints.train_state import TrainState
from desloc_jax.hosts.agreement import check_agreement
from desloc_jax.hosts.interruption import Interrupted, StopRequest
from desloc_jax.hosts.peers import peers
from desloc_jax.hosts.platforms import check_platforms, prepare_cpus
from desloc_jax.hosts.watchdog import Watchdog
from desloc_jax.logs import lock
from desloc_jax.logs.wandb_log import check_available
from desloc_jax.logs.workdir import (
  check_workdir,
  CHECKPOINTS,
  keep_tokenizer,
  TENSORBOARD,
  write_options,
)
from desloc_jax.optimizer.health import judged
from desloc_jax.options.checks import check_config
from desloc_jax.options.effect import tell_of_no_effect
from desloc_jax.options.values import flatten
from desloc_jax.paths import resolve
from desloc_jax.train import summary
from desloc_jax.train.divergence import check_finite_state
from desloc_jax.train.evaluate import Evaluator
from desloc_jax.train.job import Job
from desloc_jax.train.recorder import Recorder
from desloc_jax.train.resume.complete import complete_metrics
from desloc_jax.train.resume.restore import begin_or_go_on, position_after
from desloc_jax.train.setup.open_data import check_apart
from desloc_jax.train.speed import collector
from desloc_jax.train.speed.behind import make_behind
from desloc_jax.train.speed.compilation import keep_programs
from desloc_jax.train.speed.in_flight import InFlight
from desloc_jax.train.speed.inputs import step_inputs
from desloc_jax.train.speed.profile import Profile
from desloc_jax.train.step import finite_workers


def train(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  devices: Sequence[jax.Device] | None = None,
  given: Collection[str] = (),
) -> dict[str, Any]:
  """Trains, or goes on from the newest checkpoint in `workdir`, until `stop_at` or the last step.

  Writes config.json, metrics.jsonl, tensorboard/, checkpoints/, training.png and summary.json. A
  run that is at its end already is summed up as what it was: its files stay as they are, and what
  is lost of them is made again.

  Args:
    config: of the run.
    workdir: where all is written.
    devices: default all of them.
    given: the options that the command line sets, for what is said of those without effect.

  Returns:
    The summary; empty on all processes but the first.

  Raises:
    UserError: the configuration, the data or the workdir cannot be used, or cannot be written any
      more.
    TrainingDiverged: names the metric, the worker and the step; checkpoints stay as they are.
    Interrupted: after Ctrl-C, SIGTERM or SIGHUP to one of the processes, when all have finished the
      same step and saved it.
  """
  begun_s = time.perf_counter()
  check_config(config)
  prepare_cpus()
  check_platforms()
  peers().on_first(functools.partial(check_available, config.log.wandb))
  keep_programs(config.compilation.cache)
  workdir = peers().together(lambda: resolve(workdir, '--workdir'))
  board = peers().make_board()
  with contextlib.ExitStack() as stack:
    wake_collector = stack.enter_context(collector.resting())
    watchdog = stack.enter_context(Watchdog(config.processes.stuck_timeout_s, workdir, board))
    request = stack.enter_context(StopRequest(board))
    peers().together(functools.partial(check_workdir, workdir))
    peers().together(functools.partial(check_apart, config, workdir))
    peers().on_first(lambda: stack.enter_context(lock.hold(workdir)))
    check_agreement(config, workdir)
    peers().on_first(functools.partial(check_renaming, workdir))
    kept = config.checkpoint.keep, config.checkpoint.keep_every
    checkpoints = Checkpoints(workdir / CHECKPOINTS, *kept)
    try:
      job, state, start, changes = begin_or_go_on(config, devices, checkpoints)
      stop = config.stop_at or job.clock.last_step
      options = flatten(config)
      if start == stop:
        complete_metrics(job, state, stop, workdir)
        options = checkpoints.position(start)['config']  # All ask, and process 0 reads.
      if peers().is_first:
        write_options(options, workdir)
        keep_tokenizer(job.data.tokenizer.file, workdir)
      if start < stop:
        if peers().is_first:
          tell_of_no_effect(config, given)
        run = Run(job, workdir, checkpoints, request, watchdog, start, stop, changes, begun_s)
        state = _run_steps(run, state, wake_collector)
    finally:
      watchdog.enter('the end')
      checkpoints.close()
    syncs = {name: int(count) for name, count in peers().fetch(state.syncs).items()}
    # All wait for that: a process that ends alone is one that is lost.
    return peers().on_first(lambda: summary.conclude(job, workdir, syncs)) or {}


@dataclasses.dataclass(frozen=True)
class Run:
  """The steps that are to be made, and what is made of them.

  Attributes:
    job: how.
    workdir: where all is written.
    checkpoints: those of the workdir.
    request: that the run stops early.
    watchdog: that is told of progress.
    start: the step after which it begins.
    stop: the last step.
    changes: what differs from the run that it goes on from, in words.
    begun_s: when this process began it, by `time.perf_counter`.
  """

  job: Job
  workdir: pathlib.Path
  checkpoints: Checkpoints
  request: StopRequest
  watchdog: Watchdog
  start: int
  stop: int
  changes: str
  begun_s: float

  def saves_after(self, step: int) -> bool:
    return step == self.stop or _due(step, self.job.config.checkpoint.every)

  def evaluates_after(self, step: int) -> bool:
    return step == self.stop or _due(step, self.job.config.eval.every)

  def save(self, step: int, state: TrainState, syncs: Mapping[str, int]) -> None:
    """Writes a checkpoint after a step, with the number of averages so far."""
    with self.watchdog.during('a checkpoint'):
      finite = peers().fetch(finite_workers(state))
      check_finite_state(step, finite, can_be_left_out=judged(state.optimizer.health))
      self.checkpoints.save(step, state, position_after(self.job, step, syncs, finite))


def _wait_until_all_begin(job: Job) -> None:
  """Returns when all processes have their program.

  Local steps wait for nobody: who had it at once would make some, and then take for stuck who still
  compiles, as its limit is that of steps by then.
  """
  _ = job.train_step
  peers().wait_for_all()


def _run_steps(run: Run, state: TrainState, begun: Callable[[], None]) -> TrainState:
  """Returns the state after the last step, of which there is then a checkpoint.

  `begun` is called when the first step is dispatched.
  """
  job, start, stop, request = run.job, run.start, run.stop, run.request
  if peers().is_first:
    job.data.warn_of_epochs(stop)
  evaluator = Evaluator(job, run.watchdog.beat)
  behind = make_behind(job, state)
  recorder = Recorder(job, run.workdir, start, stop, state, run.begun_s, behind)
  profile = Profile(job.config.profile.steps, run.workdir / TENSORBOARD, start, stop)
  in_flight = InFlight(run.watchdog.step_arrived)
  try:
    if start == 0:
      recorder.write(
        {'step': 0, 'tokens': 0, 'bytes_per_worker': 0, 'synced': [], **evaluator(state)}
      )
    if notes := [note for note in (run.changes, recorder.lost) if note]:
      recorder.write({'step': start, 'restored': '; '.join(notes)})
    recorder.restart_clock()
    request.begin(start)
    for step, inputs in zip(range(start + 1, stop + 1), step_inputs(job, start), strict=False):
      if step == start + 1:
        _wait_until_all_begin(job)
      if behind:
        state = behind.land(step, state)
      state, metrics = job.train_step(state, *inputs)
      if behind:
        behind.send(step, state, metrics)
      if step == start + 1:
        begun()
      in_flight.add(metrics)
      if recorder.due:  # The step before: fetched now that the device has its next work.
        recorder.write(recorder.fetch())
      recorder.add(step, metrics)
      profile.after(step, metrics)
      interrupted = step < stop and request.stops_after(step)
      saves, evaluates = interrupted or run.saves_after(step), run.evaluates_after(step)
      if saves or evaluates:
        line = recorder.fetch()
        if evaluates:
          with run.watchdog.during('an evaluation'):
            line |= evaluator(state)
        recorder.write(line)
        if saves:
          state = behind.settle(state) if behind else state
          run.save(step, state, recorder.syncs)
        recorder.restart_clock()
      if interrupted:
        raise Interrupted(step, request.signal_number)
  finally:
    profile.close()
    recorder.close()
  return state


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
