"""Turns the metrics of steps, fetched in bunches, into lines for the logs and the progress bar."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
import statistics
import sys
import time
from typing import Any

from absl import logging
import numpy as np

from desloc_jax.checkpoints.train_state import TrainState
from desloc_jax.hosts.devices import peak_flops, peak_memory_bytes
from desloc_jax.hosts.peers import peers
from desloc_jax.logs.metrics import format_bytes, MetricsWriter, progress_bar
from desloc_jax.logs.wandb_log import WandbLog
from desloc_jax.model import flops_per_token
from desloc_jax.optimizer.worker_step.frame import HEALTH
from desloc_jax.optimizer.worker_step.triggers import steps_until_due
from desloc_jax.options.values import flatten
from desloc_jax.train.divergence import check_finite
from desloc_jax.train.job import Job
from desloc_jax.train.setup.build_periods import scheduled_periods
from desloc_jax.train.speed.arrivals import Arrivals
from desloc_jax.train.speed.behind import Behind


class Recorder:
  """Keeps the metrics of steps on the device until a line is due; then the newest is waited for."""

  def __init__(
    self,
    job: Job,
    workdir: pathlib.Path,
    start: int,
    stop: int,
    state: TrainState,
    begun_s: float,
    behind: Behind | None = None,
  ):
    """Starts after step `start`, with `state`; `begun_s` is when the run was, by `perf_counter`."""
    self._job, self._begun_s, self._behind, self._waited_s = job, begun_s, behind, 0.0
    self._peak_tokens_per_s = _peak_tokens_per_s(job)
    self._writer = MetricsWriter(workdir, start) if peers().is_first else None
    self._wandb = None
    if peers().is_first and job.config.log.wandb != 'off':
      self._wandb = WandbLog(workdir, job.config.log.wandb, flatten(job.config))
    self.lost = self._writer.lost if self._writer else ''
    if self.lost:
      logging.warning('%s', self.lost)
    self._bar = progress_bar(start, stop, shown=peers().is_first)
    self._pending: list[tuple[int, Mapping[str, Any]]] = []
    self._arrivals, self._last_arrival = Arrivals(), math.nan
    self._interval_start = time.perf_counter()
    self._periods = scheduled_periods(job.program.optimizer.quantities, job.config, job.clock)
    self._counters: Mapping[str, Any] = {}
    syncs, health, in_flight = peers().fetch(
      (state.syncs, state.optimizer.health, dict(state.optimizer.flight.left))
    )
    self._restarts = np.array(health.restarts if health else np.zeros(job.config.workers, int))
    self.syncs = {name: int(count) for name, count in syncs.items()}
    self._in_flight: Mapping[str, Any] = in_flight
    self._landed = _landed(self.syncs, in_flight)

  def add(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes the metrics of a step that was dispatched."""
    self._pending.append((step, metrics))
    self._arrivals.add(metrics['loss'])
    self._bar.update()

  @property
  def due(self) -> bool:
    """Whether the newest step is one to log."""
    return bool(self._pending) and self._pending[-1][0] % self._job.config.log_every == 0

  def fetch(self) -> dict[str, Any]:
    """Returns the line of the newest step, after waiting for the metrics of all pending ones.

    Raises:
      TrainingDiverged: in one of them a loss or gradient norm is not finite, and it is not one
        of workers that can be left out while others stay.
    """
    fetched = peers().fetch([metrics for _, metrics in self._pending])
    now = time.perf_counter()
    speed = self._speed(now)
    step_ms = self._step_ms([metrics['syncs'] for metrics in fetched])
    for (step, _), metrics in zip(self._pending, fetched, strict=True):
      check_finite(step, metrics, self._active(step))
      self._tell_of_restarts(step, metrics)
    step, metrics = self._pending[-1][0], fetched[-1]
    self._pending = []
    syncs = {name: int(count) for name, count in metrics['syncs'].items()}
    synced = [n for n, count in syncs.items() if count > self.syncs[n] and n != HEALTH]
    self._in_flight = metrics['in_flight']
    landed = _landed(syncs, self._in_flight)
    arrived = [n for n, count in landed.items() if count > self._landed[n] and n != HEALTH]
    self.syncs, self._landed, self._counters = syncs, landed, metrics['counters']
    active = self._active(step)
    drift = {
      name: finite_mean(metrics['drift'][name], active)
      for name in synced
      if np.isfinite(metrics['drift'].get(name, math.nan)).any()
    }
    if self._behind:
      step_ms['sync_wait_ms'] = 1e3 * (self._behind.waited_s - self._waited_s)
      self._waited_s = self._behind.waited_s
    line = {
      'step': step,
      'tokens': self._job.clock.tokens(step),
      'epochs': self._job.data.stream.epochs(step),
      'loss': finite_mean(metrics['loss'], active),
      'losses': [round(float(loss), 5) for loss in metrics['loss']],  # Of each worker.
      'lr': float(metrics['learning_rate']),
      'grad_norm': finite_mean(metrics['grad_norm'], active),
      **{name: finite_mean(values, active) for name, values in metrics['model'].items()},
      'seconds': round(now - self._begun_s, 3),
      'tokens_per_s': speed,
      **step_ms,
      **({'mfu': speed / self._peak_tokens_per_s} if self._peak_tokens_per_s else {}),
      'peak_memory_bytes': peak_memory_bytes(),
      'bytes_per_worker': self._job.bytes_after(syncs),
      'synced': synced,
      **({'landed': arrived} if self._in_flight else {}),
      'drift': drift,
    }
    if self._job.active:
      line['away'] = np.flatnonzero(~active).tolist()
    if self._restarts.any():
      line['restarts'] = self._restarts.tolist()
    return line

  def _active(self, step: int) -> np.ndarray:
    active = self._job.active
    return active(step) if active else np.ones(self._job.config.workers, bool)

  def _tell_of_restarts(self, step: int, metrics: Mapping[str, Any]) -> None:
    restarts = metrics['health'].get('restarts', self._restarts)
    for worker in np.flatnonzero(restarts > self._restarts):
      if peers().is_first:
        self._bar.write(
          f'Step {step}: worker {worker} was not finite, had run away or was stuck. It was left out '
          f'of the average and restarted from the consensus, restart {restarts[worker]} of this worker.',
          file=sys.stderr,
        )
    self._restarts = np.array(restarts, int)

  def write(self, line: Mapping[str, Any]) -> None:
    """Writes a line to the logs and shows it beside the progress bar."""
    if self._writer is None:
      return
    self._writer.write(line)
    if self._wandb is not None:
      self._wandb.write(line)
    if 'loss' in line:
      self._bar.set_postfix_str(self._status(line), refresh=False)

  def restart_clock(self) -> None:
    """Leaves the time since the last line, spent on something else, out of what steps take."""
    self._interval_start, self._last_arrival = time.perf_counter(), math.nan

  def close(self) -> None:
    self._bar.close()
    self._arrivals.close()
    if self._writer is not None:
      self._writer.close()
    if self._wandb is not None:
      self._wandb.close()

  def _speed(self, now: float) -> float:
    speed = len(self._pending) * self._job.clock.batch.tokens / (now - self._interval_start)
    self._interval_start = now
    return speed

  def _step_ms(self, syncs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the median milliseconds of pending local and sync steps, of `syncs` after each."""
    arrivals, took = self._arrivals.take(), {'local_step_ms': [], 'sync_step_ms': []}
    before = self.syncs
    for arrival, after in zip(arrivals, syncs, strict=True):
      averaged = any(int(count) > before[name] for name, count in after.items())
      took['sync_step_ms' if averaged else 'local_step_ms'].append(arrival - self._last_arrival)
      before, self._last_arrival = after, arrival
    # The first after a pause has none before it.
    known = {name: [each for each in times if not math.isnan(each)] for name, times in took.items()}
    return {name: 1e3 * statistics.median(times) for name, times in known.items() if times}

  def _status(self, line: Mapping[str, Any]) -> str:
    upcoming = [f'{name} {when}' for name, when in self._upcoming(line['step']).items()]
    landing = [f'{name} in {left}' for name, left in self._in_flight.items() if left]
    return ', '.join(
      [
        f'loss {line["loss"]:.3f}',
        f'{line["tokens_per_s"]:,.0f} tokens/s',
        f'sent {format_bytes(line["bytes_per_worker"])}',
        *([f'waited {line["sync_wait_ms"]:.0f} ms'] if line.get('sync_wait_ms') else []),
        *(['next ' + ' '.join(upcoming)] if upcoming else []),
        *(['landing ' + ' '.join(landing)] if landing else []),
      ]
    )

  def _upcoming(self, step: int) -> dict[str, str]:
    """Returns in how many steps each quantity is averaged next, or with which probability."""
    config = self._job.config
    warmup, found = config.sync_warmup_steps, {}
    for name, period in self._periods.items():
      if name not in self._counters or period == 1:
        continue
      if config.stochastic and step >= warmup:
        if period is not None:
          found[name] = f'p = 1/{period(step) if callable(period) else period}'
        continue
      count = int(self._counters[name])
      pre = config.timing == 'pre'
      steps = steps_until_due(period, count, step, pre=pre, warmup_steps=warmup)
      if steps is not None:
        found[name] = f'in {steps}'
    return found


def _landed(syncs: Mapping[str, int], in_flight: Mapping[str, Any]) -> dict[str, int]:
  """Returns how many syncs of each quantity have landed, of all that were sent."""
  return {name: count - (int(in_flight.get(name, 0)) > 0) for name, count in syncs.items()}


def _peak_tokens_per_s(job: Job) -> float | None:
  """Returns the tokens a second of all devices at their peak; None: it is not known."""
  model, devices = job.program.model, job.program.mesh.devices
  peak = peak_flops(devices.flat[0].device_kind) if model.compute_dtype == 'bfloat16' else None
  model = dataclasses.replace(model, seq_len=job.config.seq_len)
  return peak and peak * devices.size / flops_per_token(model)


def finite_mean(values: np.ndarray, active: np.ndarray) -> float:
  """Returns the mean over the workers that are there and well, of all if there are none."""
  well = active & np.isfinite(values)
  return float(np.mean(values[well] if well.any() else values[np.isfinite(values)]))
