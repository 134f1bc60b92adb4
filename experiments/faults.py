"""Faults injected into real runs: does the same command go on, what is lost, is it the same run?

  python -m experiments.faults

One small run is left alone; it is the reference. The others are the same command, ended again and
again at random moments by one fault after another (kill -9, SIGTERM, a damaged checkpoint, a full
disk, a read-only folder), and started again each time until they are through. All lines of their
metrics.jsonl but the speed, and all bits of their last checkpoint, are compared with the
reference's. Steps lost are those that were logged before the fault and had to be done again.

Full disks and read-only folders are mounted, which takes root on Linux; elsewhere they are skipped.
Five to eight minutes on two cores. Writes experiments/results/faults.csv, a row a fault, and prints
them by kind.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import csv
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import tqdm

from desloc_jax.tables import align
from desloc_jax.train import checksums
from desloc_jax.train.checkpoint import Checkpoints, STATE
from desloc_jax.train.leaves import LeafReader
from desloc_jax.train.metrics import read_metrics
from desloc_jax.train.workdir import CHECKPOINTS, METRICS_FILE

ROOT = pathlib.Path(__file__).parent.parent
# Saves take about as long as the steps between them, and come after syncs and between syncs.
OPTIONS = {
  'steps': 100, 'batch_size': 8, 'seq_len': 64, 'model.layers': 1, 'model.width': 64,
  'model.heads': 2, 'model.remat': 'none', 'periods.params': 3, 'schedule.warmup_steps': 6,
  'log_every': 1, 'eval.every': 0, 'eval.sequences': 8, 'checkpoint.every': 5,
  'checkpoint.keep': 3, 'data.sources.text.where': 'year:1960-2030',
}  # fmt: skip
KILLS_A_RUN = 6
LONGEST_DELAY = 1.2  # Seconds after the first step, about 20 steps.
START = (0.5, 6.0)  # Seconds from the start of a process, within which its first step falls.
AT_ONCE = 2.0  # Seconds, with cores that others use too.
DISK = 'size=64m'
_GIVE_UP = 120  # Seconds.
_WENT_ON = re.compile(r'^Going on after step (\d+)', re.MULTILINE)
_WARNING = re.compile(r'W\d{4} ')
_BAR = re.compile(r'^ *\d+%\|.*?\|.*?\]', re.MULTILINE)


class RunFailed(Exception):
  """A process ended, or hung, where it should have gone on."""


class RunFinished(Exception):
  """A process came to the end of its run before it could be disturbed."""


class Attempt:
  """A process that trains in `workdir`; the same command each time."""

  _numbers = itertools.count()

  def __init__(self, workdir: pathlib.Path, cache: pathlib.Path, options: dict[str, object]):
    self.workdir = workdir
    self._metrics = workdir / METRICS_FILE
    self._file_before = self._metrics.stat().st_ino if self._metrics.exists() else None
    # Beside the workdir, whose disk may be full.
    name = f'{workdir.name}-{next(self._numbers)}'
    self._output, self._errors = (workdir.with_name(name + end) for end in ('.out', '.err'))
    overrides = [f'--config.{name}={value}' for name, value in options.items()]
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '',
      'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'PYTHONUNBUFFERED': '1',  # A killed process prints nothing any more.
    }
    with self._output.open('wb') as output, self._errors.open('wb') as errors:
      self.process = subprocess.Popen(
        [sys.executable, 'run.py', '--config=configs/tiny.py', f'--workdir={workdir}', *overrides],
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
    self._wait(lambda: self.first_step() is not None)
    first = self.first_step()
    self._wait(lambda: (self.logged_step() or 0) > first)
    self._wait(lambda: len(complete_checkpoints(self.workdir)) >= checkpoints)
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

  def _wait(self, is_so: Callable[[], bool]) -> None:
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


@dataclasses.dataclass
class Injection:
  """A fault that was injected, and what became of the run.

  Attributes:
    fault: which one.
    detail: of the fault, such as the file that was damaged.
    done: the last step that was logged before.
    expected: the step that the next start should go on from.
    warns_of: the file that the next start should name in a warning; empty: it should not warn.
    problem: what went wrong; empty: nothing.
    resumed: the step that the next start went on from.
    identical: whether all of the run was the reference's, bit for bit.
  """

  fault: str
  detail: str
  done: int
  expected: int
  warns_of: str = ''
  problem: str = ''
  resumed: int | None = None
  identical: bool = False

  @property
  def lost(self) -> int | str:
    return '' if self.resumed is None else max(0, self.done - self.resumed)


# Ends the process of an attempt by a fault; raises RunFinished if it was through before.
Injector = Callable[[Bench, Attempt, random.Random], Injection]


def complete_checkpoints(workdir: pathlib.Path) -> list[int]:
  """Returns the steps of the complete checkpoints, the newest first."""
  folder = workdir / CHECKPOINTS
  names = os.listdir(folder) if folder.exists() else []
  return sorted((int(name) for name in names if name.isdigit()), reverse=True)


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
  by_step = {line['step']: {k: v for k, v in line.items() if k != 'tokens_per_s'} for line in lines}
  if len(by_step) != len(lines):
    raise RunFailed(f'{workdir / METRICS_FILE} has a step twice')
  return by_step


def kill(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Kills a process at a random moment: now and then as it starts, mostly as it trains."""
  if rng.random() < 0.2:
    time.sleep(rng.uniform(*START))
  else:
    attempt.train(rng.uniform(0, LONGEST_DELAY))
  _kill(attempt)
  newest = _newest(attempt)
  done = attempt.logged_step()
  unfinished = [name for name in _checkpoint_names(attempt.workdir) if 'tmp' in name]
  if done is None:
    moment = 'as it starts'
  elif unfinished:
    moment = 'in a save'
  elif done == bench.last_step:
    moment = 'as it ends'
  else:  # The step after the one that was logged last was being computed.
    moment = 'in a sync' if bench.syncs_in(done + 1) else 'in a step'
  detail = f'unfinished: {" ".join(unfinished)}' if unfinished else ''
  return Injection(f'kill -9 {moment}', detail, newest if done is None else done, newest)


def terminate(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Sends SIGTERM: the step is finished and saved."""
  del bench
  attempt.train(rng.uniform(0, LONGEST_DELAY / 2))
  attempt.send(signal.SIGTERM)
  code, lines = attempt.join(), attempt.errors()
  if code == 0 and not lines:
    raise RunFinished
  step = _newest(attempt)
  said = f'stopped by SIGTERM after step {step}, saved; the same command goes on.'
  problem = '' if code == 0 and lines == [said] else f'exit code {code}, {lines}'
  return Injection('SIGTERM', '', attempt.logged_step() or 0, step, problem=problem)


def terminate_twice(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Sends SIGTERM, and again as soon as the first has been noted: the process ends at once."""
  del bench
  attempt.train(rng.uniform(0, LONGEST_DELAY / 2))
  attempt.send(signal.SIGTERM)
  while _catches(attempt.process, signal.SIGTERM):
    time.sleep(0.001)
  second = time.monotonic()
  attempt.send(signal.SIGTERM)
  code = attempt.join()
  seconds = time.monotonic() - second
  if code == 0 and not attempt.errors():
    raise RunFinished
  ended = code in (-signal.SIGTERM, 128 + signal.SIGTERM) and seconds < AT_ONCE
  return Injection(
    'SIGTERM twice',
    f'ended {seconds:.3f} s after the second',
    attempt.logged_step() or 0,
    _newest(attempt),
    problem='' if ended else f'exit code {code} after {seconds:.1f} s',
  )


def truncate(path: pathlib.Path) -> None:
  """Cuts a file in half."""
  os.truncate(path, path.stat().st_size // 2)


def flip_bit(path: pathlib.Path) -> None:
  """Flips a bit in the middle of a file."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def damage(how: Callable[[pathlib.Path], None]) -> Injector:
  """Returns an injector that kills a process and damages a file of the newest checkpoint."""

  def injector(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
    del bench
    _kill_with_checkpoints(attempt, rng, 2)
    newest, before, *_ = complete_checkpoints(attempt.workdir)
    folder = attempt.workdir / CHECKPOINTS / str(newest)
    path = rng.choice(_signed_files(folder))
    how(path)
    name = path.relative_to(folder).as_posix()
    done = attempt.logged_step() or newest
    return Injection(f'{_DAMAGES[how]} in the newest checkpoint', name, done, before, warns_of=name)

  return injector


_DAMAGES = {
  truncate: 'truncated file',
  flip_bit: 'flipped bit',
  pathlib.Path.unlink: 'missing file',
}


def damage_all(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Kills a process, damages all checkpoints, starts again in vain, and repairs them."""
  _kill_with_checkpoints(attempt, rng, 2)
  done, folder = attempt.logged_step(), attempt.workdir / CHECKPOINTS
  steps = complete_checkpoints(attempt.workdir)
  paths = [rng.choice(_signed_files(folder / str(step))) for step in steps]
  contents = [path.read_bytes() for path in paths]
  for path in paths:
    truncate(path)
  before = _fingerprint(folder, steps)
  refused = bench.start(attempt.workdir)
  code, lines = refused.join(), refused.errors()
  problem = '' if _fingerprint(folder, steps) == before else 'files have changed'
  if code != 2 or not re.match('error: all checkpoints .* damaged .* anew', lines[-1]):
    problem = f'exit code {code}, {lines}'
  for path, content in zip(paths, contents, strict=True):
    path.write_bytes(content)
  detail = f'{len(steps)} checkpoints; their files were brought back'
  newest = steps[0]
  return Injection('all checkpoints damaged', detail, done or newest, newest, problem=problem)


def fill_disk(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Fills the disk of a run, which must be a small one, until the process has ended."""
  del bench
  attempt.train(rng.uniform(0, LONGEST_DELAY / 2), checkpoints=1)
  with filled(attempt.workdir, attempt.process):
    code = attempt.join()
  return _stopped(attempt, 'full disk', code, 'No space left on device')


def start_on_full_disk(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Kills a process and starts again while the disk is full."""
  _kill_with_checkpoints(attempt, rng, 1)
  with filled(attempt.workdir):
    refused = bench.start(attempt.workdir)
    code = refused.join()
  return _stopped(refused, 'full disk at a start', code, 'No space left on device')


def make_read_only(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Makes the folder of the checkpoints read-only while the run goes on."""
  del bench
  attempt.train(rng.uniform(0, LONGEST_DELAY / 2), checkpoints=1)
  with read_only(attempt.workdir / CHECKPOINTS):
    code = attempt.join()
  return _stopped(attempt, 'read-only folder', code, 'Read-only file system')


def start_read_only(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Kills a process and starts again while its folder is read-only."""
  _kill_with_checkpoints(attempt, rng, 1)
  with read_only(attempt.workdir):
    refused = bench.start(attempt.workdir)
    code = refused.join()
  return _stopped(refused, 'read-only folder at a start', code, '')


def _stopped(attempt: Attempt, fault: str, code: int, reason: str) -> Injection:
  lines = attempt.errors()
  if code == 0 and not lines:
    raise RunFinished
  newest, problem = _newest(attempt), ''
  if code != 2 or len(lines) != 1 or not lines[0].startswith('error: ') or reason not in lines[0]:
    problem = f'exit code {code}, {lines}'
  elif damaged := checksums.find_damage(attempt.workdir / CHECKPOINTS / str(newest)):
    problem = f'the newest checkpoint was lost: {damaged}'
  done = attempt.logged_step()
  detail = lines[-1].replace(str(attempt.workdir), 'WORKDIR') if lines else ''
  return Injection(fault, detail, newest if done is None else done, newest, problem=problem)


def _kill(attempt: Attempt) -> None:
  attempt.send(signal.SIGKILL)
  code = attempt.join()
  if code == 0:
    raise RunFinished
  if code != -signal.SIGKILL:
    raise RunFailed(f'it ended with code {code}: {attempt.errors()}')


def _kill_with_checkpoints(attempt: Attempt, rng: random.Random, count: int) -> None:
  attempt.train(rng.uniform(0, LONGEST_DELAY / 2), count)
  _kill(attempt)


def _newest(attempt: Attempt) -> int:
  return next(iter(complete_checkpoints(attempt.workdir)), 0)


def _checkpoint_names(workdir: pathlib.Path) -> list[str]:
  folder = workdir / CHECKPOINTS
  return sorted(os.listdir(folder)) if folder.exists() else []


def _signed_files(folder: pathlib.Path) -> list[pathlib.Path]:
  names = sorted(json.loads((folder / checksums.FILE).read_text()))
  paths = [folder / checksums.FILE, *(folder / name for name in names)]
  return [path for path in paths if path.stat().st_size]


def _fingerprint(folder: pathlib.Path, steps: Sequence[int]) -> dict[str, tuple[int, int]]:
  paths = [path for step in steps for path in sorted((folder / str(step)).rglob('*'))]
  stats = {path: path.stat() for path in paths if path.is_file()}
  return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def _catches(process: subprocess.Popen, number: int) -> bool:
  """Returns whether a process has a handler for a signal."""
  try:
    status = pathlib.Path(f'/proc/{process.pid}/status').read_text()
  except OSError:
    return False
  caught = re.search(r'^SigCgt:\s*(\w+)', status, re.MULTILINE)
  return bool(caught and int(caught[1], 16) >> (number - 1) & 1)


def why_no_mounts() -> str:
  """Returns why nothing can be mounted here; empty if it can."""
  with tempfile.TemporaryDirectory() as folder:
    try:
      with small_disk(pathlib.Path(folder)), read_only(pathlib.Path(folder)):
        return ''
    except (OSError, subprocess.CalledProcessError) as error:
      return (getattr(error, 'stderr', '') or str(error)).strip()


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[None]:
  """Mounts a small disk of memory at a folder, which is made."""
  folder.mkdir(exist_ok=True)
  with _mounted(folder, '-t', 'tmpfs', '-o', DISK, 'tmpfs'):
    yield


@contextlib.contextmanager
def read_only(folder: pathlib.Path) -> Iterator[None]:
  """Makes a folder read-only, also for root."""
  with _mounted(folder, '--bind', str(folder)):
    _command('mount', '-o', 'remount,bind,ro', str(folder))
    yield


@contextlib.contextmanager
def _mounted(folder: pathlib.Path, *what: str) -> Iterator[None]:
  _command('mount', *what, str(folder))
  try:
    yield
  finally:
    _command('umount', '--lazy', str(folder))


def _command(*command: str) -> None:
  subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def filled(folder: pathlib.Path, process: subprocess.Popen | None = None) -> Iterator[None]:
  """Fills a disk; for as long as `process` runs, so that nothing it deletes makes room."""
  filler = folder / 'filler'
  try:
    with filler.open('wb', buffering=0) as file:
      _fill(file)
      while process is not None and process.poll() is None:
        time.sleep(0.01)
        _fill(file)
    yield
  finally:
    filler.unlink()


def _fill(file) -> None:
  for size in (2**20, 2**12, 1):
    with contextlib.suppress(OSError):
      while file.write(bytes(size)) == size:
        pass


def inject(
  bench: Bench,
  workdir: pathlib.Path,
  injectors: Sequence[Injector],
  rng: random.Random,
  done: Callable[[], object] = lambda: None,
  **options: object,
) -> list[Injection]:
  """Runs to the end through these faults, in this order, unless the run is through before.

  Args:
    bench: that starts the run.
    workdir: of the run.
    injectors: of the faults.
    rng: for their moments and files.
    done: called after each of them.
    **options: of the run, where they differ from the bench's.
  """
  injections, waiting = [], []
  attempt = bench.start(workdir, **options)
  try:
    with contextlib.suppress(RunFinished):
      for injector in injectors:
        injection = injector(bench, attempt, rng)
        injection.identical = bench.same_lines(workdir)
        _note_restart(waiting, attempt)
        injections.append(injection)
        waiting.append(injection)
        attempt = bench.start(workdir, **options)
        done()
    if attempt.join():
      raise RunFailed(f'it ended with code {attempt.process.returncode}: {attempt.errors()}')
    _note_restart(waiting, attempt)
    same = bench.same_end(workdir)
  except RunFailed as error:
    if not injections:
      raise
    injections[-1].problem, same = str(error), False
  finally:
    if attempt.process.poll() is None:
      attempt.process.kill()
      attempt.process.wait()
  for injection in injections:
    injection.identical &= same
  return injections


def _note_restart(waiting: list[Injection], attempt: Attempt) -> None:
  """Takes those that were waiting for a process to go on after them, unless this one did not."""
  resumed = attempt.first_step()
  if resumed is None:  # It was killed as it started.
    return
  for injection in waiting:
    injection.resumed = resumed
    injection.problem = injection.problem or _wrong_restart(injection, attempt.errors())
  waiting.clear()


def _wrong_restart(injection: Injection, errors: Sequence[str]) -> str:
  if injection.resumed != injection.expected:
    return f'went on from step {injection.resumed}, not {injection.expected}'
  warnings = [line for line in errors if _WARNING.match(line)]
  as_expected = warnings == [line for line in warnings if injection.warns_of in line]
  if len(warnings) != bool(injection.warns_of) or not as_expected:
    return f'warnings: {warnings}'
  return ''


def run_all(bench: Bench, kills: int, seed: int) -> tuple[list[Injection], str]:
  """Returns what was injected, and why something was skipped, if it was."""
  rng = random.Random(seed)
  signals = (terminate, terminate_twice) * 3
  damages = [*map(damage, _DAMAGES)] * 2 + [damage_all]
  disk_faults = (fill_disk, start_on_full_disk, fill_disk, make_read_only, start_read_only)
  why_not = why_no_mounts()
  total = kills + len(signals) + len(damages) + (0 if why_not else len(disk_faults))
  injections = []
  with tqdm.tqdm(total=total, unit='fault', dynamic_ncols=True) as bar:
    bar.set_postfix_str('reference')
    _ = bench.reference

    def run(name: str, injectors: Sequence[Injector], **options: object) -> int:
      bar.set_postfix_str(name)
      made = inject(bench, bench.folder / name, injectors, rng, bar.update, **options)
      injections.extend(made)
      return len(made)

    left, number = kills, 0
    while left:
      # With one checkpoint kept, deleting the old one before the new one is there would show.
      keep = 1 if number % 2 else 3
      left -= run(f'kills-{number}', [kill] * min(left, KILLS_A_RUN), **{'checkpoint.keep': keep})
      number += 1
    run('signals', signals)
    run('damages', damages)
    if not why_not:
      with small_disk(bench.folder / 'disk'):
        run('disk', disk_faults)
  return injections, why_not


def table(injections: Sequence[Injection]) -> str:
  """Returns what was injected, by fault."""
  rows = [('fault', 'injected', 'survived', 'steps lost', 'most', 'bit-identical')]
  for fault in sorted({x.fault for x in injections}):
    group = [x for x in injections if x.fault == fault]
    lost = [x.lost for x in group if x.lost != '']
    rows.append((
      fault,
      str(len(group)),
      str(sum(not x.problem for x in group)),
      f'{statistics.mean(lost):.1f}' if lost else '',
      str(max(lost)) if lost else '',
      str(sum(x.identical for x in group)),
    ))  # fmt: skip
  return align(rows)


def write_rows(injections: Sequence[Injection], path: pathlib.Path) -> None:
  """Writes a row a fault."""
  with path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(
      ['fault', 'detail', 'done', 'resumed', 'lost', 'survived', 'identical', 'problem']
    )
    for x in injections:
      row = (x.fault, x.detail, x.done, x.resumed, x.lost, not x.problem, x.identical, x.problem)
      writer.writerow(row)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the options of the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.faults',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--kills', type=int, default=30, help='processes to kill (default: %(default)s)')
  add('--seed', type=int, default=0, help='of the moments and files (default: %(default)s)')
  add('--workdir', default='runs/faults', help='folder of the runs (default: %(default)s)')
  add('--results', default='experiments/results', help='folder of the table')
  options = parser.parse_args(argv)
  if options.kills < 1:
    parser.error(f'--kills is {options.kills}; expected at least 1.')
  return options


def main():
  options = parse()
  jax.config.update('jax_platforms', 'cpu')
  workdir, results = pathlib.Path(options.workdir).absolute(), pathlib.Path(options.results)
  for folder in (workdir, results):
    folder.mkdir(parents=True, exist_ok=True)
  runs = pathlib.Path(tempfile.mkdtemp(prefix='runs-', dir=workdir))
  begin = time.monotonic()
  try:
    injections, why_not = run_all(Bench(runs, workdir / 'cache'), options.kills, options.seed)
  except RunFailed as error:
    sys.exit(f'error: {error}. Its files are in {runs}.')
  write_rows(injections, results / 'faults.csv')
  print(table(injections))
  if why_not:
    print(f'No full disk and no read-only folder, as nothing can be mounted: {why_not}')
  print(f'{len(injections)} faults in {time.monotonic() - begin:.0f} s')
  failed = [x for x in injections if x.problem or not x.identical]
  if not failed:
    shutil.rmtree(runs)
    return
  for x in failed:
    print(f'{x.fault} after step {x.done}: {x.problem or "the run is another one"}')
  print(f'Files of the runs that went wrong are in {runs}.')
  sys.exit(1)


if __name__ == '__main__':
  main()
