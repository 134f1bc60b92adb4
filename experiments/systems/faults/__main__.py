"""Faults injected into real runs: does the same command go on, what is lost, is it the same run?

  python -m experiments.systems.faults

One small run is left alone; it is the reference. The others are the same command, ended again and
again at random moments by one fault after another (kill -9, also around syncs of few bytes, whose
memory must come back, SIGTERM, SIGHUP, reads that hang, a second start beside it, a damaged
checkpoint, a full disk, a read-only folder), and started again each time until they are through.
Runs with such syncs have a reference of their own. All lines of their metrics.jsonl but the speed, and
all bits of their last checkpoint, are compared with the reference's. Steps lost are those that were
logged before the fault and had to be done again.

Full disks and read-only folders are mounted, which takes root on Linux; elsewhere they are skipped.
Six to nine minutes on two cores. Writes experiments/results/faults.csv, a row a fault, and prints
them by kind.
"""

import argparse
from collections.abc import Sequence
import pathlib
import shutil
import sys
import tempfile
import time

import jax

from desloc_jax import commands
from desloc_jax.commands import Option
from desloc_jax.errors import UserError
from desloc_jax.valid import at_least
from experiments.report import RESULTS, rows_in
from experiments.systems.faults.campaign import run_all, table, write_rows
from experiments.systems.faults.command_runs import Bench, RunFailed


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the options of the command line."""
  return commands.parse(
    'experiments.systems.faults',
    __doc__,
    argv,
    kills=Option(30, 'processes to kill', at_least(1)),
    seed=Option(0, 'of the moments and files'),
    workdir=Option(pathlib.Path('runs/faults'), 'folder of the runs'),
    results=Option(RESULTS, 'folder of the table'),
  )


def main(options: argparse.Namespace) -> None:
  """Injects the faults, writes the rows and prints the table."""
  jax.config.update('jax_platforms', 'cpu')
  workdir, results = pathlib.Path(options.workdir).absolute(), pathlib.Path(options.results)
  for folder in (workdir, results):
    folder.mkdir(parents=True, exist_ok=True)
  runs = pathlib.Path(tempfile.mkdtemp(prefix='runs-', dir=workdir))
  begin = time.monotonic()
  try:
    injections, why_not = run_all(Bench(runs, workdir / 'cache'), options.kills, options.seed)
  except RunFailed as error:
    raise UserError(f'{error}. Its files are in {runs}.') from error
  path = results / 'faults.csv'
  if len(injections) < (before := rows_in(path)):
    print(f'{path} has {before} faults, more than these, and stays.')
  else:
    write_rows(injections, path)
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
  with commands.one_line_errors():
    main(parse())
