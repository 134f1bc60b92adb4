"""Turns the metrics of steps, fetched in bunches, into lines for the logs and the progress bar."""

from collections.abc import Mapping
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from desloc_jax.train.job import Job
from desloc_jax.train.metrics import format_bytes, MetricsWriter, progress_bar

_ADVICE = (
  'Checkpoints stay as they are; a lower inner.learning_rate or inner.clip_norm, in another '
  '--workdir, may help.'
)


class TrainingDiverged(RuntimeError):
  """A worker's loss or gradient is not finite any more."""


class Recorder:
  """Keeps the metrics of steps on the device until a line is due, so that the loop never waits."""

  def __init__(
    self, job: Job, workdir: pathlib.Path, start: int, stop: int, syncs: Mapping[str, int]
  ):
    """Starts after step `start` with `syncs` averages of each quantity done."""
    self._job = job
    self._writer = MetricsWriter(workdir, start)
    self._bar = progress_bar(start, stop)
    self._pending: list[tuple[int, Mapping[str, Any]]] = []
    self._interval_start = time.perf_counter()
    self.syncs = {name: int(count) for name, count in syncs.items()}

  def add(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes the metrics of a step that was dispatched."""
    self._pending.append((step, metrics))
    self._bar.update()

  @property
  def due(self) -> bool:
    """Whether the newest step is one to log."""
    return bool(self._pending) and self._pending[-1][0] % self._job.config.log_every == 0

  def fetch(self) -> dict[str, Any]:
    """Returns the line of the newest step, after waiting for the metrics of all pending ones.

    Raises:
      TrainingDiverged: a loss or gradient norm of one of them is not finite.
    """
    fetched = jax.device_get([metrics for _, metrics in self._pending])
    speed = self._speed(time.perf_counter())
    for (step, _), metrics in zip(self._pending, fetched, strict=True):
      check_finite(step, metrics)
    step, metrics = self._pending[-1][0], fetched[-1]
    self._pending = []
    syncs = {name: int(count) for name, count in metrics['syncs'].items()}
    synced = [name for name, count in syncs.items() if count > self.syncs[name]]
    self.syncs = syncs
    drift = {
      name: float(np.mean(metrics['drift'][name])) for name in synced if name in metrics['drift']
    }
    return {
      'step': step,
      'tokens': step * self._job.tokens_per_step,
      'loss': float(np.mean(metrics['loss'])),
      'lr': float(metrics['learning_rate']),
      'grad_norm': float(np.mean(metrics['grad_norm'])),
      'tokens_per_s': speed,
      'bytes_per_worker': self._job.ledger.bytes_after(syncs),
      'synced': synced,
      'drift': drift,
    }

  def write(self, line: Mapping[str, Any]) -> None:
    """Writes a line to the logs and shows it beside the progress bar."""
    self._writer.write(line)
    if 'loss' in line:
      self._bar.set_postfix_str(self._status(line), refresh=False)

  def restart_clock(self) -> None:
    """Leaves the time since the last line, spent on something else, out of the tokens/s."""
    self._interval_start = time.perf_counter()

  def close(self) -> None:
    self._bar.close()
    self._writer.close()

  def _speed(self, now: float) -> float:
    speed = len(self._pending) * self._job.tokens_per_step / (now - self._interval_start)
    self._interval_start = now
    return speed

  def _status(self, line: Mapping[str, Any]) -> str:
    config, ledger = self._job.config, self._job.ledger
    periodic = not config.stochastic and config.period_growth == 1
    late = config.timing == 'pre'  # Averages come before a step, one later than after it.
    upcoming = [
      f'{name} in {int(period - (line["step"] - late) % period)}'
      for name, period in ledger.periods.items()
      if periodic and 1 < period < math.inf
    ]
    return ', '.join(
      [
        f'loss {line["loss"]:.3f}',
        f'{line["tokens_per_s"]:,.0f} tokens/s',
        f'sent {format_bytes(line["bytes_per_worker"])}',
        *(['next ' + ' '.join(upcoming)] if upcoming else []),
      ]
    )


def check_finite(step: int, metrics: Mapping[str, Any]) -> None:
  """Checks the losses and gradient norms, float32 [workers], of a step.

  Raises:
    TrainingDiverged: names the metric, the worker and the step.
  """
  for name in ('loss', 'grad_norm'):
    bad = np.flatnonzero(~np.isfinite(metrics[name]))
    if bad.size:
      raise TrainingDiverged(
        f'{name} of worker {_listing(bad)} is {metrics[name][bad[0]]} at step {step}. {_ADVICE}'
      )


def check_finite_state(step: int, finite: jax.Array) -> None:
  """Checks a state before it is saved; `finite` is boolean [workers], from `step.finite_workers`.

  Raises:
    TrainingDiverged: names the worker and the step.
  """
  bad = np.flatnonzero(~np.asarray(finite))
  if bad.size:
    raise TrainingDiverged(
      f'parameters or moments of worker {_listing(bad)} are not finite after step {step}. {_ADVICE}'
    )


def _listing(workers: np.ndarray) -> str:
  return ', '.join(map(str, workers))
