"""Trains the runs of an experiment that have no result yet, and gives back the results of all.

A run has a folder, named by a hash of its config: a finished run is never repeated, whichever
experiment asks for it, and an interrupted one goes on. Processes, also on several machines, that
share the folder divide the runs: each holds a lock on the run that it trains, which the operating
system gives back however it ends. A shared file system must support locks (flock).
"""

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import json
import math
import os
import pathlib
import platform
import shutil
import statistics
import time
from typing import Any

import jax

from desloc_jax.errors import UserError
from desloc_jax.hosts.peers import peers
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.logs.workdir import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, write_text
from desloc_jax.options.checks import check_config
from desloc_jax.train.divergence import TrainingDiverged
from desloc_jax.train.loop import train
from experiments.progress import Progress
from experiments.runs import is_done, read_result, Result, RESULT_FILE, Run, with_those_before

CLAIM_FILE, OUTPUT_FILE = 'claim', 'output.txt'
COMPILED = 'compiled'  # Folder of compiled programs, which the seeds of a run share.
_WAIT_S = 2.0


def run_all(runs: Sequence[Run], folder: pathlib.Path, progress: Progress) -> list[Result]:
  """Trains what is not trained yet, waits for what others train, and returns the results in order.

  All processes of a run over several (`jax.distributed`) call it alike; the first one decides, and
  it alone has the results.

  Raises:
    UserError: a config cannot work; raised before the first run.
    Interrupted: after Ctrl-C or SIGTERM, when the run in progress has saved its state.
  """
  waiting = with_those_before(runs)
  for run in waiting:
    try:
      check_config(run.config)
    except UserError as error:
      raise UserError(f'{run.name}: {error}') from error
  _share_compiled_programs(folder / COMPILED / platform.node())
  while waiting:
    left = [run for run in waiting if not _settle(run, folder, progress)]
    if len(left) == len(waiting):  # The others are at it.
      time.sleep(_WAIT_S)
    waiting = left
  return [read_result(run, folder) for run in runs] if peers().is_first else []


def _settle(run: Run, folder: pathlib.Path, progress: Progress) -> bool:
  """Trains a run if nobody else does; returns whether it is done."""
  first_finds = lambda run: peers().from_first(lambda: is_done(run, folder))
  if first_finds(run):
    return True
  if run.after and not first_finds(run.after):
    return False
  workdir = run.folder(folder)
  with contextlib.ExitStack() as stack:
    if not peers().from_first(lambda: stack.enter_context(claim(workdir))):
      return False
    if not first_finds(run):  # Else it ended between the look and the lock.
      progress.begin(run)
      _train(run, folder)
  return True


@contextlib.contextmanager
def claim(folder: pathlib.Path, wait: bool = False) -> Iterator[bool]:
  """Gives whether this process now holds the folder's lock, which ends with it at the latest.

  With `wait` it does, when others have given it back.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / CLAIM_FILE).open('a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
    else:
      yield True


def _train(run: Run, folder: pathlib.Path) -> None:
  """Trains a run, or the rest of it, and writes its result."""
  workdir = run.folder(folder)
  begin = time.monotonic()
  if peers().is_first:
    (workdir / RESULT_FILE).unlink(missing_ok=True)  # Of a run whose checkpoints are wanted again.
  if run.after and not _begin_after(run.after, run, folder):
    summary, diverged = _so_far(run, workdir), f'{run.after.name} diverged'
  else:
    summary, diverged = _train_until_end(run, workdir)
  if run.measure and not diverged and peers().is_first:
    summary['measured'] = run.measure(workdir)
  seconds = time.monotonic() - begin
  jax.clear_caches()  # Of hundreds of runs, programs would fill the memory.
  if peers().is_first:
    result = {'summary': summary, 'diverged': diverged, 'seconds': seconds}
    write_text(workdir / RESULT_FILE, json.dumps(result, indent=2) + '\n')
    if not run.keeps_checkpoints:
      shutil.rmtree(workdir / CHECKPOINTS, ignore_errors=True)


def _train_until_end(run: Run, workdir: pathlib.Path) -> tuple[dict[str, Any], str]:
  """Returns the summary, and why the run diverged if it did."""
  output = workdir / OUTPUT_FILE if peers().is_first else pathlib.Path(os.devnull)
  with output.open('a') as file, contextlib.redirect_stdout(file):
    try:
      return train(run.config, workdir), ''
    except TrainingDiverged as error:
      return _so_far(run, workdir), str(error)


def _begin_after(before: Run, run: Run, folder: pathlib.Path) -> bool:
  """Copies what a run goes on from, unless it has begun: the checkpoints last, and all at once.

  Returns:
    Whether there is something to go on from: the run before may have diverged.
  """
  source, workdir = before.folder(folder), run.folder(folder)

  def copy() -> bool:
    if not (workdir / CHECKPOINTS).exists():
      for name in (CONFIG_FILE, METRICS_FILE):
        write_text(workdir / name, (source / name).read_text())
      if (source / CHECKPOINTS).exists():
        partial = workdir / f'{CHECKPOINTS}.partial'
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source / CHECKPOINTS, partial)
        partial.rename(workdir / CHECKPOINTS)
    return not read_result(before, folder).diverged

  return peers().from_first(copy)


def _so_far(run: Run, workdir: pathlib.Path) -> dict[str, Any]:
  """Returns what a summary would say of a run that diverged, with an infinite loss."""
  lines = [line for line in read_metrics(workdir) if 'loss' in line]
  last = lines[-1] if lines else {'step': 0, 'bytes_per_worker': 0}
  return {
    'method': run.config.method,
    'val_loss': math.inf,
    'bits_per_byte': math.inf,
    'steps': last['step'],
    'bytes_per_worker': last['bytes_per_worker'],
    'tokens_per_s': statistics.median(line['tokens_per_s'] for line in lines) if lines else 0.0,
    'versions': {'jax': jax.__version__},
    'device': jax.devices()[0].device_kind,
  }


def _share_compiled_programs(folder: pathlib.Path) -> None:
  if not jax.config.jax_compilation_cache_dir:  # Else the user has chosen one.
    jax.config.update('jax_compilation_cache_dir', str(folder.absolute()))
