"""The training loop: dispatch steps, log, evaluate, checkpoint, resume.

Resume order:
  1. config.json in the workdir must describe the same run.
  2. Model, data and step are built from the config alone.
  3. The newest checkpoint's state replaces the fresh one, and its step positions the data stream.
  4. Lines of metrics.jsonl from after that step are dropped: they will be written again.
"""

from collections.abc import Iterator, Sequence
import json
import pathlib
import statistics
from typing import Any

from absl import logging
import jax
from ml_collections import config_dict

from desloc_jax import data as data_lib
from desloc_jax.errors import UserError
from desloc_jax.train import config as config_lib, report
from desloc_jax.train.checkpoint import Checkpoints
from desloc_jax.train.evaluate import Evaluator
from desloc_jax.train.job import Job, make_job
from desloc_jax.train.metrics import write_atomically
from desloc_jax.train.plot import plot_training
from desloc_jax.train.recorder import Recorder
from desloc_jax.train.step import TrainState

CONFIG_FILE = 'config.json'


def train(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Trains, or goes on from the newest checkpoint in `workdir`, until `stop_at` or the last step.

  Writes config.json, metrics.jsonl, tensorboard/, checkpoints/, training.png and summary.json.

  Returns:
    The summary.

  Raises:
    UserError: the configuration, the data or the workdir cannot be used.
    TrainingDiverged: names the metric, the worker and the step; checkpoints stay as they are.
  """
  config_path = workdir / CONFIG_FILE
  if config_path.exists():
    config_lib.check_same_config(config, config_path)
  job = make_job(config, devices)
  workdir.mkdir(parents=True, exist_ok=True)
  write_atomically(config_path, json.dumps(config_lib.flatten(config), indent=2) + '\n')
  checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoint.keep)
  try:
    state, start = _restore_or_init(job, checkpoints)
    stop = config.stop_at or config.steps
    if start >= stop:
      raise UserError(
        f'{workdir} is at step {start} already and this run would end at step {stop}; '
        'raise stop_at up to steps, or use another --workdir.'
      )
    summary = _run_steps(job, workdir, checkpoints, state, start, stop)
  finally:
    checkpoints.close()
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
  if position['data'] != job.data.fingerprint:
    raise UserError(
      'the data or the tokenizer has changed since the checkpoint was written; use another '
      '--workdir, or the data that the run began with.'
    )
  logging.info('Resuming after step %d.', step)
  return state, step


def _run_steps(
  job: Job,
  workdir: pathlib.Path,
  checkpoints: Checkpoints,
  state: TrainState,
  start: int,
  stop: int,
) -> dict[str, Any]:
  config = job.config
  evaluator = Evaluator(job)
  recorder = Recorder(job, workdir, start, stop, jax.device_get(state.syncs))
  try:
    if start == 0:
      recorder.write(
        {'step': 0, 'tokens': 0, 'bytes_per_worker': 0, 'synced': [], **evaluator(state)}
      )
    recorder.restart_clock()
    for step, tokens in zip(range(start + 1, stop + 1), _batches(job, start), strict=False):
      state, metrics = job.train_step(state, tokens)
      if recorder.due:  # The step before this one: fetched now that the device has its next work.
        recorder.write(recorder.fetch())
      recorder.add(step, metrics)
      saves = step == stop or _due(step, config.checkpoint.every)
      evaluates = step == stop or _due(step, config.eval.every)
      if saves or evaluates:
        line = recorder.fetch()  # Raises before a state that is not finite could be saved.
        if evaluates:
          line |= evaluator(state)
        recorder.write(line)
        if saves:
          checkpoints.save(step, state, _position(job, step))
        recorder.restart_clock()
  finally:
    recorder.close()
  line['tokens_per_s'] = statistics.median(recorder.speeds)
  return report.summarise(job, line, recorder.syncs)


def _batches(job: Job, start: int) -> Iterator[jax.Array]:
  """Yields the tokens of each step from `start` on, already on the devices."""
  config = job.config
  stream = data_lib.TrainingStream(
    job.data.train, workers=config.workers, batch_size=config.batch_size, seed=config.seed
  )
  on_device = (
    jax.device_put(tokens.reshape(job.tokens_like.shape), job.tokens_like.sharding)
    for tokens in stream.iterator(start)
  )
  ahead = next(on_device)  # One step ahead of the loop, so that a copy overlaps with a step.
  for tokens in on_device:
    yield ahead
    ahead = tokens


def _position(job: Job, step: int) -> dict[str, Any]:
  """Returns where the data stream is after `step`: sequences that all workers have consumed."""
  sequences = step * job.config.workers * job.config.batch_size
  return {'step': step, 'sequences': sequences, 'data': job.data.fingerprint}


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
