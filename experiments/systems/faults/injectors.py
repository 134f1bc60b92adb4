"""The faults: each ends the process of a run, and says what the next start should do."""

from collections.abc import Callable, Sequence
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import time

from desloc_jax.checkpoints import checksums
from desloc_jax.logs.workdir import CHECKPOINTS
from experiments.systems.faults.command_runs import (
  Attempt,
  Bench,
  complete_checkpoints,
  RunFailed,
  RunFinished,
)
from experiments.systems.faults.disks import filled, read_only

LONGEST_DELAY = 1.2  # Seconds after the first step, about 20 steps.
AROUND = 0.1  # Seconds, about two steps.
START = (0.5, 6.0)  # Seconds from the start of a process, within which its first step falls.


@dataclasses.dataclass
class Injection:
  """A fault that was injected, and what became of the run.

  Attributes:
    fault: which one.
    detail: of the fault, such as the file that was damaged.
    done: the last step that was logged before.
    expected: the step that the next start should go on from.
    warns_of: what the next start should name in a warning, a file say; empty: it should not warn.
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


def kill(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Kills a process at a random moment: now and then as it starts, mostly as it trains."""
  if rng.random() < 0.2:
    time.sleep(rng.uniform(*START))
  else:
    attempt.train(rng.uniform(0, LONGEST_DELAY))
  return _killed(bench, attempt)


def kill_around_sync(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Kills a process within some steps of a sync, before or after it or inside."""
  attempt.train(rng.uniform(0, LONGEST_DELAY), checkpoints=1)
  attempt.wait(lambda: bench.syncs_in((attempt.logged_step() or 0) + 1))
  time.sleep(rng.uniform(0, AROUND))
  injection = _killed(bench, attempt)
  injection.detail = ' '.join(
    filter(None, [injection.fault.removeprefix('kill -9 '), injection.detail])
  )
  injection.fault = 'kill -9 around a compressed sync'
  return injection


def _killed(bench: Bench, attempt: Attempt) -> Injection:
  kill_now(attempt)
  newest = newest_step(attempt)
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
  told = 'begins anew' if done and not newest else ''
  return Injection(
    f'kill -9 {moment}', detail, newest if done is None else done, newest, warns_of=told
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
    kill_with_checkpoints(attempt, rng, 2)
    newest, before, *_ = complete_checkpoints(attempt.workdir)
    folder = attempt.workdir / CHECKPOINTS / str(newest)
    path = rng.choice(_signed_files(folder))
    how(path)
    name = path.relative_to(folder).as_posix()
    done = attempt.logged_step() or newest
    return Injection(f'{DAMAGES[how]} in the newest checkpoint', name, done, before, warns_of=name)

  return injector


DAMAGES = {
  truncate: 'truncated file',
  flip_bit: 'flipped bit',
  pathlib.Path.unlink: 'missing file',
}


def damage_all(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Kills a process, damages all checkpoints, starts again in vain, and repairs them."""
  kill_with_checkpoints(attempt, rng, 2)
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
  kill_with_checkpoints(attempt, rng, 1)
  return _start_with(filled, bench, attempt, 'full disk at a start', 'No space left on device')


def make_read_only(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Makes the folder of the checkpoints read-only while the run goes on."""
  del bench
  attempt.train(rng.uniform(0, LONGEST_DELAY / 2), checkpoints=1)
  with read_only(attempt.workdir / CHECKPOINTS):
    code = attempt.join()
  return _stopped(attempt, 'read-only folder', code, 'Read-only file system')


def start_read_only(bench: Bench, attempt: Attempt, rng: random.Random) -> Injection:
  """Kills a process and starts again while its folder is read-only."""
  kill_with_checkpoints(attempt, rng, 1)
  return _start_with(read_only, bench, attempt, 'read-only folder at a start', '')


def _start_with(trouble, bench: Bench, attempt: Attempt, fault: str, reason: str) -> Injection:
  with trouble(attempt.workdir):
    refused = bench.start(attempt.workdir)
    code = refused.join()
  return _stopped(refused, fault, code, reason)


def _stopped(attempt: Attempt, fault: str, code: int, reason: str) -> Injection:
  lines = attempt.errors()
  if code == 0 and not lines:
    raise RunFinished
  newest, problem = newest_step(attempt), ''
  if code != 2 or len(lines) != 1 or not lines[0].startswith('error: ') or reason not in lines[0]:
    problem = f'exit code {code}, {lines}'
  elif damaged := checksums.find_damage(attempt.workdir / CHECKPOINTS / str(newest)):
    problem = f'the newest checkpoint was lost: {damaged}'
  done = attempt.logged_step()
  detail = lines[-1].replace(str(attempt.workdir), 'WORKDIR') if lines else ''
  return Injection(fault, detail, newest if done is None else done, newest, problem=problem)


def kill_now(attempt: Attempt) -> None:
  attempt.send(signal.SIGKILL)
  code = attempt.join()
  if code == 0:
    raise RunFinished
  if code != -signal.SIGKILL:
    raise RunFailed(f'it ended with code {code}: {attempt.errors()}')


def kill_with_checkpoints(attempt: Attempt, rng: random.Random, count: int) -> None:
  attempt.train(rng.uniform(0, LONGEST_DELAY / 2), count)
  kill_now(attempt)


def newest_step(attempt: Attempt) -> int:
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
