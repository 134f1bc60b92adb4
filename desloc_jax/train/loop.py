"""The training loop: dispatch steps, log, evaluate, checkpoint, resume.

Resume order:
  1. config.json in the workdir must describe the same run.
  2. Model, data and step are built from the config alone.
  3. The newest checkpoint's state replaces the fresh one, and its step positions the data stream.
  4. Lines of metrics.jsonl from after that step are dropped: they will be written again.
"""

from collections.abc import Iterator, Sequence
import pathlib
from typing import Any

import jax
from ml_collections import config_dict

from desloc_jax.errors import UserError
from desloc_jax.train import report
from desloc_jax.train.checkpoint import Checkpoints
from desloc_jax.train.evaluate import Evaluator
from desloc_jax.train.interruption import Interrupted, StopRequest
from desloc_jax.train.job import Job, make_job
from desloc_jax.train.metrics import read_metrics
from desloc_jax.train.plot import plot_training
from desloc_jax.train.recorder import check_finite_state, Recorder
from desloc_jax.train.step import TrainState
from desloc_jax.train.workdir import check_workdir, CHECKPOINTS, write_config


def train(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Trains, or goes on from the newest checkpoint in `workdir`, until `stop_at` or the last step.

  Writes config.json, metrics.jsonl, tensorboard/, checkpoints/, training.png and summary.json. A run
  that is at its end already is summed up again.

  Returns:
    The summary.

  Raises:
    UserError: the configuration, the data or the workdir cannot be used.
    TrainingDiverged: names the metric, the worker and the step; checkpoints stay as they are.
    Interrupted: after Ctrl-C or SIGTERM, when the step in progress was finished and saved.
  """
  check_workdir(config, workdir)
  job = make_job(config, devices)
  checkpoints = Checkpoints(workdir / CHECKPOINTS, config.checkpoint.keep)
  try:
    state, start = _restore_or_init(job, checkpoints)
    stop = config.stop_at or config.steps
    if start > stop:
      raise UserError(
        f'{workdir} is at step {start} already and this run would end at step {stop}; '
        'raise stop_at up to steps, or use another --workdir.'
      )
    write_config(config, workdir)
    state = _run_steps(job, workdir, checkpoints, state, start, stop)
  finally:
    checkpoints.close()
  syncs = {name: int(count) for name, count in jax.device_get(state.syncs).items()}
  summary = report.summarise(job, read_metrics(workdir), syncs)
  report.write_summary(summary, workdir)
  plot_training(workdir, title=f'{config.method}, {config.workers} workers: {workdir.name}')
  print(report.network_table(job, summary))
  print(report.result_line(summary, workdir))
  return summary


def _restore_or_init(job: Job, checkpoints: Checkpoints) -> tuple[TrainState, int]:
  step = checkpoints.latest_step()
  if step is None:
    return job.make_state(), 0
  state, position = checkpoints.restore(step, job.state_like)
  if position.get('data') != job.data.fingerprint:
    raise UserError(
      'the data or the tokenizer has changed since the checkpoint was written; use another '
      '--workdir, or the data that the run began with.'
    )
  print(f'Going on after step {step}.')
  return state, step


def _run_steps(
  job: Job,
  workdir: pathlib.Path,
  checkpoints: Checkpoints,
  state: TrainState,
  start: int,
  stop: int,
) -> TrainState:
  """Returns the state after step `stop`, of which there is then a checkpoint."""
  if start == stop:
    return state
  config = job.config
  evaluator = Evaluator(job)
  recorder = Recorder(job, workdir, start, stop, jax.device_get(state.syncs))
  try:
    if start == 0:
      recorder.write(
        {'step': 0, 'tokens': 0, 'bytes_per_worker': 0, 'synced': [], **evaluator(state)}
      )
    recorder.restart_clock()
    with StopRequest() as request:
      for step, tokens in zip(range(start + 1, stop + 1), _batches(job, start), strict=False):
        state, metrics = job.train_step(state, tokens)
        if recorder.due:  # The step before: fetched now that the device has its next work.
          recorder.write(recorder.fetch())
        recorder.add(step, metrics)
        interrupted = request.signal_number is not None
        saves = interrupted or step == stop or _due(step, config.checkpoint.every)
        evaluates = step == stop or _due(step, config.eval.every)
        if saves or evaluates:
          line = recorder.fetch()
          if evaluates:
            line |= evaluator(state)
          recorder.write(line)
          if saves:
            check_finite_state(step, job.finite(state))
            checkpoints.save(step, state, _position(job, step))
          recorder.restart_clock()
        if interrupted and step < stop:
          raise Interrupted(step, request.signal_number)
  finally:
    recorder.close()
  return state


def _batches(job: Job, start: int) -> Iterator[jax.Array]:
  """Yields the tokens of each step from `start` on, already on the devices."""
  on_device = (
    jax.device_put(tokens.reshape(job.tokens_like.shape), job.tokens_like.sharding)
    for tokens in job.data.stream.iterator(start)
  )
  ahead = next(on_device)  # One step ahead of the loop, so that a copy overlaps with a step.
  for tokens in on_device:
    yield ahead
    ahead = tokens


def _position(job: Job, step: int) -> dict[str, Any]:
  """Returns where the data stream is after `step`: sequences that all workers have consumed."""
  return {'step': step, 'sequences': job.data.stream.position(step), 'data': job.data.fingerprint}


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
