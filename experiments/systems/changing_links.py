"""Syncs behind the steps over links that change while a run goes on, and with one slow site.

  python -m experiments.systems.changing_links

Trains the same run several times, a worker at each site of a network inside this machine (as
experiments.systems.wire, which needs root, iproute2 and taskset), with all of its syncs behind the steps
and with the same delay inside the step. Links are as fast as the machine; or their rate changes
each second, among 300, 100, 30 and 10 Mbit/s; or one site has 10 Mbit/s and the others 100. What a run
ends with is to be the same, bit for bit, and what the network takes longer is to be waited for.

Writes experiments/results/changing_links.csv.
"""

import argparse
from collections.abc import Sequence
import itertools
import pathlib
import random
import tempfile
import time

import numpy as np
import tqdm

from desloc_jax import commands
from desloc_jax.commands import Option
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.tables import align
from desloc_jax.valid import at_least, between
from experiments.report import check_table_stays, RESULTS, write_rows
from experiments.several import kill, start
from experiments.systems.faults.command_runs import saved_arrays
from experiments.systems.wire.changing_rate import wait_for_ends
from experiments.systems.wire.network import (
  MOST_SITES,
  Network,
  network,
  network_errors,
  why_no_network,
)

SITES, STEPS = 4, 800  # Of the table.
RATES = (300, 100, 30, 10)  # 1e6 bits a second.
LINKS = ('fast', 'changing', 'one slow site')
SYNCS = {'in the step': {}, 'behind': {'sync.behind': True}}
OPTIONS = {
  'seq_len': 64, 'batch_size': 4, 'eval.sequences': 8, 'eval.every': 0, 'schedule.warmup_steps': 10,
  'checkpoint.every': 0, 'log_every': 10, 'health.check': False, 'periods.params': 64,
  'sync.delay': 16,
}  # fmt: skip
COLUMNS = ('links', 'syncs', 'sites', 'steps', 'ms a step', 'of it waiting', 'loss', 'same bits')


def run(made: Network, folder: pathlib.Path, links: str, options: dict) -> None:
  """Trains over links of one kind.

  Raises:
    RuntimeError: a process failed.
  """
  made.throttle(None if links == 'fast' else RATES[1], whole=True)
  if links == 'one slow site':
    made.throttle(RATES[-1], [made.sites - 1], whole=True)
  # On any core: XLA has more threads behind the steps than on one core, and adds in another order.
  before = [made.inside(site) for site in range(made.sites)]
  processes = start(made.sites, folder, options, made.sites, host=made.address(0), before=before)
  chance = random.Random(0)
  try:
    while links == 'changing' and all(process.poll() is None for process in processes):
      made.throttle(chance.choice(RATES), whole=True)
      time.sleep(1)
    wait_for_ends(processes, timeout=1800)
  finally:
    kill(processes)


def row_of(folder: pathlib.Path, first: pathlib.Path, steps: int) -> tuple:
  """Returns the last columns of a run, compared with the `first` one."""
  lines = [line for line in read_metrics(folder) if 'tokens_per_s' in line]
  timed = lines[len(lines) // 4 :]  # Not those in which processes and their caches get warm.
  tokens = lines[0]['tokens'] / lines[0]['step']
  seconds = np.mean([tokens / line['tokens_per_s'] for line in timed])
  waited = [line['sync_wait_ms'] for line in timed if 'sync_wait_ms' in line]
  lines_steps = np.diff([line['step'] for line in lines[-2:]])[0]
  share = sum(waited) / (1e3 * seconds * lines_steps * len(timed)) if waited else None
  ends, expected = saved_arrays(folder, steps), saved_arrays(first, steps)
  same = all(x.tobytes() == expected[name].tobytes() for name, x in ends.items())
  return f'{1e3 * seconds:.1f}', '' if share is None else f'{share:.1%}', lines[-1]['loss'], same


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the options of the command line."""
  return commands.parse(
    'experiments.systems.changing_links',
    __doc__,
    argv,
    sites=Option(SITES, 'processes', between(2, MOST_SITES)),
    steps=Option(STEPS, 'of each run', at_least(80)),
    results=Option(RESULTS, 'folder of the table'),
  )


def main(argv: Sequence[str] | None = None) -> None:
  options = parse(argv)
  results = pathlib.Path(options.results)
  table = results / 'changing_links.csv'
  check_table_stays(table, sites=(options.sites, SITES), steps=(options.steps, STEPS))
  if why_not := why_no_network():
    raise UserError(f'no network can be made here: {why_not}.')
  rows, cases = [], list(itertools.product(LINKS, SYNCS.items()))
  with tempfile.TemporaryDirectory() as folder:
    folders = [pathlib.Path(folder, str(number)) for number in range(len(cases))]
    for (links, (name, own)), here in zip(tqdm.tqdm(cases, unit='run'), folders, strict=True):
      with network(options.sites) as made:
        run(made, here, links, {**OPTIONS, 'steps': options.steps, **own})
      found = row_of(here, folders[0], options.steps)
      rows.append((links, name, options.sites, options.steps, *found))
  results.mkdir(parents=True, exist_ok=True)
  write_rows([COLUMNS, *rows], table)
  print(align([COLUMNS, *(tuple(map(str, row)) for row in rows)]))
  if not all(row[-1] for row in rows):
    raise UserError('the bits of some runs differ.')


if __name__ == '__main__':
  with commands.one_line_errors(), network_errors():
    main()
