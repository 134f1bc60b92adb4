"""One fault after another on the same run, until it is through; and the table of what became of it."""

from collections.abc import Callable, Sequence
import contextlib
import pathlib
import random
import re
import statistics

import tqdm

from desloc_jax.tables import align
from experiments import report
from experiments.systems.faults import injectors as faults, processes
from experiments.systems.faults.command_runs import (
  Attempt,
  Bench,
  COMPRESSED,
  RunFailed,
  RunFinished,
)
from experiments.systems.faults.disks import small_disk, why_no_mounts
from experiments.systems.faults.injectors import Injection, Injector

KILLS_A_RUN = 6
AROUND_SYNCS = 6
_WARNING = re.compile(r'W\d{4} ')


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
  signals = (processes.terminate, processes.terminate_twice, processes.hang_up) * 3
  stuck = (processes.get_stuck,) * 3
  starts = (processes.start_twice, processes.kill_as_it_restores) * 3
  damages = [*map(faults.damage, faults.DAMAGES)] * 2 + [faults.damage_all]
  disk_faults = (
    faults.fill_disk,
    faults.start_on_full_disk,
    faults.fill_disk,
    faults.make_read_only,
    faults.start_read_only,
  )
  around = [faults.kill_around_sync] * AROUND_SYNCS
  why_not = why_no_mounts()
  total = (
    kills
    + len(around)
    + len(signals)
    + len(stuck)
    + len(starts)
    + len(damages)
    + (0 if why_not else len(disk_faults))
  )
  injections = []
  with tqdm.tqdm(total=total, unit='fault', dynamic_ncols=True) as bar:
    bar.set_postfix_str('reference')
    _ = bench.reference

    def run(name: str, injectors: Sequence[Injector], bench=bench, **options: object) -> int:
      bar.set_postfix_str(name)
      made = inject(bench, bench.folder / name, injectors, rng, bar.update, **options)
      injections.extend(made)
      return len(made)

    left, number = kills, 0
    while left:
      # With one checkpoint kept, deleting the old one before the new one is there would show.
      keep = 1 if number % 2 else 3
      left -= run(
        f'kills-{number}', [faults.kill] * min(left, KILLS_A_RUN), **{'checkpoint.keep': keep}
      )
      number += 1
    run('syncs', around, bench.beside('compressed', **COMPRESSED))
    run('signals', signals)
    run('stuck', stuck, **{'processes.stuck_timeout_s': 5})
    run('starts', starts)
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
  report.write_rows(
    [
      ('fault', 'detail', 'done', 'resumed', 'lost', 'survived', 'identical', 'problem'),
      *(
        (x.fault, x.detail, x.done, x.resumed, x.lost, not x.problem, x.identical, x.problem)
        for x in injections
      ),
    ],
    path,
  )
