"""Bytes and time of each method on a real wire, between processes with a slow network between them.

  python -m experiments.systems.wire

Each process is a worker in a network namespace of its own; `tc ... tbf` throttles what it sends and
the kernel counts the bytes (network.py). Needs root, iproute2 and taskset.

Writes wire_bytes.csv, wire_time.csv, wire_overhead.csv, wire_behind.csv, wire_link.csv and two plots to
experiments/results, after each run the rows that it measured anew, in four parts:

  bytes     at K_x = 256, over whole cycles of all periods, beside the ledger's; what is sent in bf16,
            int8, int4 or by topk at K_x = 4
  time      tokens/s at each rate, beside what the planner says of the same ledger, with the
            arithmetic of a step as the same run shows it between averages
  overhead  DDP and DES-LOC at K_x = 256 over a local step of the same run at 100 Mbit/s
            (experiments.systems.overhead), started --starts times
  behind    DES-LOC that waits for its syncs, and with syncs behind the steps, also in int8 and in
            two fragments, over a local step of the same run at each rate and at K_x of --periods; what
            the link carries over time at 100 Mbit/s. Packets stay whole, as for a network card that
            cuts them
"""

import argparse
from collections.abc import Iterator, Sequence
import functools
import itertools
import math
import pathlib
import tempfile

import tqdm

from desloc_jax import commands
from desloc_jax.commands import Option
from desloc_jax.errors import UserError
from desloc_jax.tables import align
from desloc_jax.valid import at_least, between, one_of
from experiments.report import RESULTS
from experiments.systems.overhead import CYCLE, Turn
from experiments.systems.wire import claims, link_use, table_files
from experiments.systems.wire.changing_rate import measure, measure_overhead, Phase, Window
from experiments.systems.wire.compared import (
  Case,
  HIDDEN,
  METHODS,
  PARTS,
  SILENT,
  SYNCS,
  TIME_PERIOD,
)
from experiments.systems.wire.figures import plot
from experiments.systems.wire.network import (
  MOST_SITES,
  Network,
  network,
  network_errors,
  why_no_network,
)
from experiments.systems.wire.results import Measured, ROWS

RATES = (1000, 100, 10)  # 1e6 bits a second, after a part without a limit.
BYTES_PERIOD = 256  # K_x of the bytes and of the overhead.
# Of what is sent in few bytes, beside which heartbeats and lines of the log would count at 256.
FEW_BYTES_PERIOD, FEW_BYTES_STEPS = 4, 432
OVERHEAD_RATE = 100
LINK_SHOWN = (100, 64)  # Megabits and K_x of which the use of the link is shown.
# Of a step so long that DDP takes somewhat over 5 times as long at that rate. Two processes, of which
# each has to send less, may compute longer for that.
BATCH_SIZE, OVERHEAD_BATCH_SIZE_OF_TWO = 6, 8


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the options of the command line."""
  options = commands.parse(
    'experiments.systems.wire',
    __doc__,
    argv,
    sites=Option([2, 4], 'processes', between(2, MOST_SITES)),
    methods=Option(
      [*METHODS, *SYNCS],
      'some of these; those with a + for the bytes alone; of no matter for behind',
      one_of((*METHODS, *SYNCS)),
    ),
    only=Option(list(PARTS), 'some of these', one_of(PARTS)),
    rates=Option([*map(float, RATES)], '1e6 bits a second of the links, for time and behind'),
    batch_size=Option(
      int,
      'sequences of a worker a step, for time and overhead: how long it is '
      f'(default: {BATCH_SIZE}, for overhead and behind of two processes {OVERHEAD_BATCH_SIZE_OF_TWO})',
      at_least(1),
    ),
    starts=Option(10, 'of the overhead', at_least(1)),
    periods=Option([64, 256], 'K_x of the syncs behind the steps', at_least(16)),
    results=Option(RESULTS, 'folder of tables and plot'),
  )
  for rate in options.rates:
    if not 0 < rate < math.inf:
      raise UserError(f'--rates is {rate:g}; expected more than 0, and finite.')
  if 'overhead' in options.only and 'desloc' not in options.methods:
    raise UserError(
      'the overhead is of desloc, which is not among --methods; leave it out by --only.'
    )
  return options


def main(argv: Sequence[str] | None = None) -> None:
  options = parse(argv)
  cases = [
    case
    for sites in dict.fromkeys(options.sites)
    for part in dict.fromkeys(options.only)
    for _ in range(options.starts if part == 'overhead' else 1)
    for case in cases_of(part, sites, options)
  ]
  if why_not := why_no_network():
    raise UserError(f'no network can be made here: {why_not}.')
  results = pathlib.Path(options.results)
  results.mkdir(parents=True, exist_ok=True)
  for part in options.only:
    # What rows cannot be added to is refused before they are measured.
    table_files.read(part, results)
  measured: dict[str, Measured] = {part: {} for part in options.only}
  with tempfile.TemporaryDirectory() as runs:
    for number, case in enumerate(bar := tqdm.tqdm(cases, unit='run')):
      bar.set_postfix_str(str(case))
      with network(case.sites) as sites:
        with link_use.watched(sites) as samples:
          found = _measure(case, sites, pathlib.Path(runs, str(number)))
      measured[case.part].setdefault(case, []).append(found)
      rows = table_files.update(case.part, ROWS[case.part](measured[case.part]), results)
      if case.part == 'time':
        plot(rows, results / 'wire.png')
      if case.part == 'behind' and (case.megabits, case.period) == LINK_SHOWN:
        used = link_use.link_rows(case.sites, case.method, case.period, case.megabits, samples)
        link_use.plot(table_files.update('link', used, results), results / 'wire_link.png')
  tables = (ROWS[part](windows) for part, windows in measured.items())
  print('\n\n'.join(align([rows[0].columns(), *(row.cells() for row in rows)]) for rows in tables))
  kept = {part: table_files.read(part, results) if part in measured else [] for part in PARTS}
  print('', *claims.checks(kept['time'], kept['overhead'], kept['behind']), sep='\n')


def _measure(case: Case, sites: Network, folder: pathlib.Path) -> Sequence[Window] | Sequence[Turn]:
  if case.part in ('overhead', 'behind'):
    whole = case.part == 'behind'
    return measure_overhead(sites, folder, case.options, case.megabits, whole=whole)
  return measure(
    sites, folder, case.options, case.phases, log_every=case.log_every, devices=case.devices
  )


def cases_of(part: str, sites: int, options: argparse.Namespace) -> Iterator[Case]:
  """Yields the runs of one part, of `PARTS`."""
  chosen = dict.fromkeys(options.methods)
  methods = [method for method in chosen if method not in SYNCS]
  cycle = CYCLE * BYTES_PERIOD
  of_two = part in ('overhead', 'behind') and sites == 2
  batch_size = options.batch_size or (OVERHEAD_BATCH_SIZE_OF_TWO if of_two else BATCH_SIZE)
  timed = functools.partial(Case, sites=sites, part=part, batch_size=batch_size)
  if part == 'bytes':
    for method in methods:
      yield Case(method, sites, BYTES_PERIOD, (Phase(1000, 512 if method == 'ddp' else cycle),))
    if 'desloc' in methods:
      yield Case('desloc', sites, BYTES_PERIOD, (Phase(1000, cycle),), devices=2)
    for name in (method for method in chosen if method in SYNCS):
      yield Case(name, sites, FEW_BYTES_PERIOD, (Phase(1000, FEW_BYTES_STEPS),))
  elif part == 'time':
    for method in (SILENT, *methods):
      steps = 24 if method == 'ddp' else 6 * TIME_PERIOD
      phases = tuple(Phase(rate, steps) for rate in (None, *options.rates))
      yield timed(method, period=TIME_PERIOD, phases=phases)
  elif part == 'behind':
    for rate, period, method in itertools.product(
      options.rates, options.periods, ('desloc', *HIDDEN)
    ):
      yield timed(method, period=period, phases=(Phase(rate, CYCLE * period),))
  else:
    for method, period in (('ddp', 1), ('desloc', BYTES_PERIOD)):
      if method in methods:
        yield timed(method, period=period, phases=(Phase(OVERHEAD_RATE, CYCLE * period),))


if __name__ == '__main__':
  with commands.one_line_errors(), network_errors():
    main()
