"""The training loop: dispatch steps, log, evaluate, checkpoint.

`restore.py` says how a run begins or goes on. Lines of metrics.jsonl from after the step that it
goes on from are dropped: they will be written again.
"""

from collections.abc import Sequence
import contextlib
import functools
import pathlib
from typing import Any

import jax
from ml_collections import config_dict

from desloc_jax.checkpoints.renaming import check_renaming
from desloc_jax.checkpoints.state import TrainState
from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.hosts.agreement import check_agreement
from desloc_jax.hosts.interruption import Interrupted, StopRequest
from desloc_jax.hosts.peers import peers
from desloc_jax.hosts.platforms import check_platforms
from desloc_jax.hosts.watchdog import Watchdog
from desloc_jax.logs import lock
from desloc_jax.logs.wandb_log import check_available
from desloc_jax.logs.workdir import check_workdir, CHECKPOINTS, keep_tokenizer, write_options
from desloc_jax.options.checks import check_config
from desloc_jax.options.table import flatten
from desloc_jax.paths import resolve
from desloc_jax.train import report
from desloc_jax.train.compilation import keep_programs
from desloc_jax.train.complete import complete_metrics
from desloc_jax.train.evaluate import Evaluator
from desloc_jax.train.in_flight import InFlight
from desloc_jax.train.inputs import step_inputs
from desloc_jax.train.job import Job
from desloc_jax.train.recorder import check_finite_state, Recorder
from desloc_jax.train.restore import begin_or_go_on, position_after


def train(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Trains, or goes on from the newest checkpoint in `workdir`, until `stop_at` or the last step.

  Writes config.json, metrics.jsonl, tensorboard/, checkpoints/, training.png and summary.json. A
  run that is at its end already is summed up as what it was: its files stay as they are, and what
  is lost of them is made again.

  Returns:
    The summary; empty on all processes but the first.

  Raises:
    UserError: the configuration, the data or the workdir cannot be used, or cannot be written any
      more.
    TrainingDiverged: names the metric, the worker and the step; checkpoints stay as they are.
    Interrupted: after Ctrl-C, SIGTERM or SIGHUP to one of the processes, when all have finished the
      same step and saved it.
  """
  check_config(config)
  check_platforms()
  peers().on_first(functools.partial(check_available, config.log.wandb))
  keep_programs(config.compilation.cache)
  workdir = peers().together(lambda: resolve(workdir, '--workdir'))
  board = peers().make_board()
  with contextlib.ExitStack() as stack:
    watchdog = Watchdog(config.processes.stuck_timeout_s, workdir, board)
    stack.enter_context(watchdog)
    request = stack.enter_context(StopRequest(board))
    peers().together(functools.partial(check_workdir, workdir))
    peers().on_first(lambda: stack.enter_context(lock.hold(workdir)))
    check_agreement(config, workdir)
    peers().on_first(functools.partial(check_renaming, workdir))
    return _train(config, workdir, devices, request, watchdog)


def _train(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  devices: Sequence[jax.Device] | None,
  request: StopRequest,
  watchdog: Watchdog,
) -> dict[str, Any]:
  """Trains in a workdir that is this run's alone."""
  checkpoints = Checkpoints(
    workdir / CHECKPOINTS, config.checkpoint.keep, config.checkpoint.keep_every
  )
  try:
    job, state, start, changes = begin_or_go_on(config, devices, checkpoints)
    stop = config.stop_at or job.clock.last_step
    if start == stop:
      made_with = checkpoints.position(start)['config']
      complete_metrics(job, state, stop, workdir)
    else:
      made_with = flatten(config)
    if peers().is_first:
      write_options(made_with, workdir)
      keep_tokenizer(job.data.tokenizer.file, workdir)
    state = _run_steps(job, workdir, checkpoints, state, start, stop, changes, request, watchdog)
  finally:
    watchdog.enter('the end')
    checkpoints.close()
  syncs = {name: int(count) for name, count in peers().fetch(state.syncs).items()}
  return report.conclude(job, workdir, syncs) if peers().is_first else {}


def _run_steps(
  job: Job,
  workdir: pathlib.Path,
  checkpoints: Checkpoints,
  state: TrainState,
  start: int,
  stop: int,
  changes: str,
  request: StopRequest,
  watchdog: Watchdog,
) -> TrainState:
  """Returns the state after step `stop`, of which there is then a checkpoint."""
  if start == stop:
    return state
  config = job.config
  if peers().is_first:
    job.data.warn_of_epochs(stop)
  evaluator = Evaluator(job, watchdog.beat)
  recorder = Recorder(job, workdir, start, stop, state)
  in_flight = InFlight(watchdog.step_arrived)
  try:
    if start == 0:
      recorder.write(
        {'step': 0, 'tokens': 0, 'bytes_per_worker': 0, 'synced': [], **evaluator(state)}
      )
    if notes := [note for note in (changes, recorder.lost) if note]:
      recorder.write({'step': start, 'restored': '; '.join(notes)})
    recorder.restart_clock()
    request.begin(start)
    for step, inputs in zip(range(start + 1, stop + 1), step_inputs(job, start), strict=False):
      state, metrics = job.train_step(state, *inputs)
      in_flight.add(metrics)
      if recorder.due:  # The step before: fetched now that the device has its next work.
        recorder.write(recorder.fetch())
      recorder.add(step, metrics)
      interrupted = step < stop and request.stops_after(step)
      saves = interrupted or step == stop or _due(step, config.checkpoint.every)
      evaluates = step == stop or _due(step, config.eval.every)
      if saves or evaluates:
        line = recorder.fetch()
        if evaluates:
          with watchdog.during('an evaluation'):
            line |= evaluator(state)
        recorder.write(line)
        if saves:
          with watchdog.during('a checkpoint'):
            finite = peers().fetch(job.finite(state))
            check_finite_state(step, finite, can_be_left_out=bool(state.optimizer.health))
            checkpoints.save(step, state, position_after(job, step, recorder.syncs, finite))
        recorder.restart_clock()
      if interrupted:
        raise Interrupted(step, request.signal_number)
  finally:
    recorder.close()
  return state


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
