"""The faults of processes: signals, reads that hang, a second start, an end as it restores."""

from collections.abc import Sequence
import os
import pathlib
import random
import re
import signal
import subprocess
import time

from desloc_jax.logs.workdir import CHECKPOINTS
from experiments.systems.faults.command_runs import Attempt, Bench, RunFinished
from experiments.systems.faults.injectors import (
  Injection,
  Injector,
  kill_now,
  kill_with_checkpoints,
  LONGEST_DELAY,
  newest_step,
)
from experiments.systems.faults.trouble import tell

AT_ONCE = 2.0  # Seconds, with cores that others use too.


def stop(number: signal.Signals, exit_code: int) -> Injector:
  """Returns an injector that sends a signal: the step is finished and saved."""

  def injector(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
    del bench
    attempt.train(rng.uniform(0, LONGEST_DELAY / 2))
    return _stopped_by(attempt, number, exit_code)

  return injector


def _stopped_by(attempt: Attempt, number: signal.Signals, exit_code: int) -> Injection:
  attempt.send(number)
  code, lines = attempt.join(), _without_the_first(attempt.errors(), number)
  if code == 0 and not lines:
    raise RunFinished
  step = newest_step(attempt)
  said = f'stopped by {number.name} after step {step}, saved; the same command goes on.'
  problem = '' if code == exit_code and lines == [said] else f'exit code {code}, {lines}'
  return Injection(number.name, '', attempt.logged_step() or 0, step, problem=problem)


def _without_the_first(lines: Sequence[str], number: signal.Signals) -> list[str]:
  """Returns lines without that which says that a signal was heard."""
  return [line for line in lines if not line.startswith(f'{number.name}: the run saves the step')]


terminate, hang_up = stop(signal.SIGTERM, 0), stop(signal.SIGHUP, 129)


def terminate_twice(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Sends SIGTERM, and again at once: the process ends, in a line."""
  del bench
  attempt.train(rng.uniform(0, LONGEST_DELAY / 2))
  attempt.send(signal.SIGTERM)
  time.sleep(0.05)  # Two that have not been heard are one.
  second = time.monotonic()
  attempt.send(signal.SIGTERM)
  code = attempt.join()
  seconds = time.monotonic() - second
  lines = _without_the_first(attempt.errors(), signal.SIGTERM)
  if code == 0 and not lines:
    raise RunFinished
  said = bool(lines) and lines[-1].startswith('ended at once by a second signal, SIGTERM')
  ended = code == 128 + signal.SIGTERM and said and seconds < AT_ONCE
  return Injection(
    'SIGTERM twice',
    f'ended {seconds:.3f} s after the second',
    attempt.logged_step() or 0,
    newest_step(attempt),
    problem='' if ended else f'exit code {code} after {seconds:.1f} s, {lines}',
  )


def get_stuck(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Lets reads of data hang until the watchdog ends the process."""
  del bench
  attempt.train(rng.uniform(0, LONGEST_DELAY / 2))
  tell(attempt.trouble, 'stuck')
  begin = time.monotonic()
  code, lines = attempt.join(), attempt.errors()
  seconds = time.monotonic() - begin
  if code == 0 and not lines:
    raise RunFinished
  told = code == 4 and lines[-1].startswith('error: stuck: no progress for ')
  where = any('stuck_inputs' in line for line in lines)  # In the stacks of its threads.
  return Injection(
    'stuck process',
    f'ended after {seconds:.0f} s',
    attempt.logged_step() or 0,
    newest_step(attempt),
    problem='' if told and where else f'exit code {code}, {lines}',
  )


def start_twice(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Starts the same command beside a process: it is refused, and names the one that is at work."""
  attempt.train(rng.uniform(0, LONGEST_DELAY / 2))
  second = bench.start(attempt.workdir)
  code, lines = second.join(), second.errors()
  if attempt.process.poll() is not None:
    raise RunFinished
  refused = code == 2 and len(lines) == 1 and re.match('error: ', lines[0])
  injection = _stopped_by(attempt, signal.SIGTERM, 0)
  injection.fault = 'double start'
  if not refused or str(attempt.process.pid) not in lines[0]:
    injection.problem = f'the second ended with exit code {code}, {lines}'
  return injection


def kill_as_it_restores(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Kills a process, and the next one as it verifies or reads the checkpoint (Linux: sees that)."""
  kill_with_checkpoints(attempt, rng, 1)
  done, newest = attempt.logged_step(), newest_step(attempt)
  again = bench.start(attempt.workdir)
  while again.process.poll() is None and again.first_step() is None:
    if name := _open_file(again.process, attempt.workdir / CHECKPOINTS):
      break
    time.sleep(0.0005)
  kill_now(again)
  detail = f'{name} was open' if name else 'no file was open'
  return Injection('kill -9 as it restores', detail, done or newest, newest)


def _open_file(process: subprocess.Popen, folder: pathlib.Path) -> str:
  """Returns a file under `folder` that a process has open, without the folder; empty: none."""
  try:
    files = [os.readlink(link) for link in pathlib.Path(f'/proc/{process.pid}/fd').iterdir()]
  except OSError:
    return ''
  return next((f.removeprefix(f'{folder}/') for f in files if f.startswith(f'{folder}/')), '')
