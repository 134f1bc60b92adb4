"""Runs of one command in real processes, and their comparison with one that was left alone."""

from collections.abc import Callable
import functools
import itertools
import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import numpy as np

from desloc_jax.checkpoints import checksums
from desloc_jax.checkpoints.leaves import LeafReader
from desloc_jax.checkpoints.store import Checkpoints, STATE
from desloc_jax.logs.metrics import MEASURED, read_metrics
from desloc_jax.logs.workdir import CHECKPOINTS, METRICS_FILE

ROOT = pathlib.Path(__file__).parents[3]
# Saves take about as long as the steps between them, and come after syncs and between syncs.
OPTIONS = {
  'steps': 100, 'batch_size': 8, 'seq_len': 64, 'model.layers': 1, 'model.width': 64,
  'model.heads': 2, 'model.remat': 'none', 'periods.params': 3, 'periods.mu': 5, 'periods.nu': 7,
  'schedule.warmup_steps': 6,
  'log_every': 1, 'eval.every': 0, 'eval.sequences': 8, 'checkpoint.every': 5,
  'checkpoint.keep': 3, 'data.sources.text.where': 'year:1960-2030',
}  # fmt: skip
# Few bytes of everything, and what is left out of each sync remembered for the next.
COMPRESSED = {
  'sync.params': 'topk', 'sync.keep': 8, 'sync.chunk': 256, 'sync.mu': 'econtrol', 'sync.nu': 'int4',
}  # fmt: skip
CONFIG = 'experiments/systems/faults/trouble.py'  # Of tiny.
_GIVE_UP = 120  # Seconds.
_WENT_ON = re.compile(r'^Going on after step (\d+)', re.MULTILINE)
_BAR = re.compile(r'^ *\d+%\|.*?\|.*?\]', re.MULTILINE)


class RunFailed(Exception):
  """A process ended, or hung, where it should have gone on."""


class RunFinished(Exception):
  """A process came to the end of its run before it could be disturbed."""


class Attempt:
  """A process that trains in `workdir`; the same command each time.

  Attributes:
    workdir: of the run.
    trouble: the file that puts this process in trouble, see `trouble.py`.
    process: that was started.
  """

  _numbers = itertools.count()

  def __init__(self, workdir: pathlib.Path, cache: pathlib.Path, options: dict[str, object]):
    self.workdir = workdir
    self._metrics = workdir / METRICS_FILE
    self._file_before = self._metrics.stat().st_ino if self._metrics.exists() else None
    # Beside the workdir, whose disk may be full.
    name = f'{workdir.name}-{next(self._numbers)}'
    ends = ('.out', '.err', '.trouble')
    self._output, self._errors, self.trouble = (workdir.with_name(name + end) for end in ends)
    overrides = [f'--config.{name}={value}' for name, value in options.items()]
    flags = os.environ.get('XLA_FLAGS', '')
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count=1',
      'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'PYTHONUNBUFFERED': '1',  # A killed process prints nothing any more.
      'TROUBLE': str(self.trouble),
    }
    with self._output.open('wb') as output, self._errors.open('wb') as errors:
      self.process = subprocess.Popen(
        [sys.executable, 'run.py', f'--config={CONFIG}', f'--workdir={workdir}', *overrides],
        cwd=ROOT, env=environment, stdout=output, stderr=errors,
      )  # fmt: skip

  def errors(self) -> list[str]:
    """Returns the lines on stderr so far, without the progress bar."""
    text = _BAR.sub('', self._errors.read_text())  # Where lines end in \r too.
    return [line.strip() for line in text.split('\n') if line.strip()]

  def logged_step(self) -> int | None:
    """Returns the last step in metrics.jsonl; None if this process has not opened it yet."""
    if not self._metrics.exists() or self._metrics.stat().st_ino == self._file_before:
      return None
    return max((line['step'] for line in read_metrics(self.workdir)), default=None)

  def first_step(self) -> int | None:
    """Returns which step this process goes on from; None if that is not known yet."""
    if found := _WENT_ON.search(self._output.read_text()):
      return int(found[1])
    return None if self.logged_step() is None else 0

  def train(self, seconds: float, checkpoints: int = 0) -> None:
    """Waits until this process trains, there are so many checkpoints, and some seconds more.

    Raises:
      RunFailed: it does not get there.
      RunFinished: the run ended before.
    """
    self.wait(lambda: self.first_step() is not None)
    first = self.first_step()
    self.wait(lambda: (self.logged_step() or 0) > first)
    self.wait(lambda: len(complete_checkpoints(self.workdir)) >= checkpoints)
    time.sleep(seconds)

  def send(self, number: int) -> None:
    self.process.send_signal(number)

  def join(self) -> int:
    """Waits until the process has ended and returns its exit code, negative for signals."""
    try:
      return self.process.wait(_GIVE_UP)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
      raise RunFailed(f'it did not end within {_GIVE_UP} s') from None

  def wait(self, is_so: Callable[[], bool]) -> None:
    """Waits until something is so; raises what `train` does."""
    deadline = time.monotonic() + _GIVE_UP
    while not is_so():
      if self.process.poll() is not None and not is_so():
        if self.process.returncode == 0:
          raise RunFinished
        raise RunFailed(f'it ended with code {self.process.returncode}: {self.errors()[-1:]}')
      if time.monotonic() > deadline:
        self.process.kill()
        raise RunFailed(f'nothing happened within {_GIVE_UP} s')
      time.sleep(0.005)


class Bench:
  """Starts runs of one command under a folder, and compares them with one that was left alone."""

  def __init__(self, folder: pathlib.Path, cache: pathlib.Path, **options: object):
    """Takes `folder` for runs, `cache` for compiled programs, and what differs from OPTIONS."""
    self.folder = folder
    self._cache = cache
    self._options = OPTIONS | options
    self.last_step = self._options['steps']

  def beside(self, name: str, **options: object) -> 'Bench':
    """Returns a bench in a folder of this one, for runs that differ by some options."""
    (self.folder / name).mkdir()
    return Bench(self.folder / name, self._cache, **self._options | options)

  def start(self, workdir: pathlib.Path, **options: object) -> Attempt:
    return Attempt(workdir, self._cache, self._options | options)

  @functools.cached_property
  def reference(self) -> tuple[dict[int, dict], dict[str, np.ndarray]]:
    """Lines of metrics.jsonl by step, and arrays of the last checkpoint by name.

    Raises:
      RunFailed: the run did not come to its end.
    """
    attempt = self.start(self.folder / 'reference')
    if attempt.join() or attempt.errors():
      raise RunFailed(f'the reference run failed: {attempt.errors()[-1:]}')
    return _lines(attempt.workdir), saved_arrays(attempt.workdir, self.last_step)

  def same_lines(self, workdir: pathlib.Path) -> bool:
    """Returns whether all steps done so far are those of the reference."""
    reference, _ = self.reference
    lines = _lines(workdir)
    return all(lines[step] == reference.get(step) for step in lines)

  def same_end(self, workdir: pathlib.Path) -> bool:
    """Returns whether a finished run has each line and each bit of the reference."""
    lines, arrays = self.reference
    if _lines(workdir) != lines:
      return False
    other = saved_arrays(workdir, self.last_step)
    return other.keys() == arrays.keys() and all(
      (other[name].dtype, other[name].shape) == (array.dtype, array.shape)
      and other[name].tobytes() == array.tobytes()
      for name, array in arrays.items()
    )

  def syncs_in(self, step: int) -> bool:
    return step % self._options['periods.params'] == 0


def complete_checkpoints(workdir: pathlib.Path) -> list[int]:
  """Returns the steps of the complete checkpoints, the newest first."""
  folder = workdir / CHECKPOINTS
  names = os.listdir(folder) if folder.exists() else []
  steps = sorted((int(name) for name in names if name.isdigit()), reverse=True)
  return [step for step in steps if _is_whole(folder / str(step))]


def _is_whole(folder: pathlib.Path) -> bool:
  """Returns whether all files are there; not where the process was killed as it removed them."""
  try:
    return all((folder / name).exists() for name in checksums.read_entries(folder))
  except ValueError:
    return False


def saved_arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  """Returns the arrays of a checkpoint by name."""
  checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=3)
  try:
    shapes = checkpoints.leaves(step)
  finally:
    checkpoints.close()
  reader = LeafReader(workdir / CHECKPOINTS / str(step) / STATE)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return {name: np.asarray(reader.read(name, like(x))) for name, x in shapes.items()}


def _lines(workdir: pathlib.Path) -> dict[int, dict]:
  lines = read_metrics(workdir) if (workdir / METRICS_FILE).exists() else []
  by_step = {line['step']: {k: v for k, v in line.items() if k not in MEASURED} for line in lines}
  if len(by_step) != len(lines):
    raise RunFailed(f'{workdir / METRICS_FILE} has a step twice')
  return by_step
