"""Bytes and time of each method on a real wire, between processes with a slow network between them.

  python -m experiments.wire

Each process is a worker in a network namespace of its own; `tc ... tbf` throttles what it sends and
the kernel counts the bytes (network.py). Needs root, iproute2 and taskset.

Writes experiments/results/wire_bytes.csv, wire_time.csv, wire_overhead.csv and wire.png, in
three parts:

  bytes     at K_x = 256, over whole cycles of all periods, beside the ledger's
  time      tokens/s at each rate, beside what the planner says of the same ledger, with the
            arithmetic of a step as the same run shows it between averages
  overhead  DES-LOC at K_x = 256 and 100 Mbit/s over no communication, in turn in the same
            processes (experiments.overhead), started --starts times
"""

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import pathlib
import signal
import sys
import tempfile

import tqdm

from desloc_jax import commands
from desloc_jax.errors import UserError
from desloc_jax.tables import align
from desloc_jax.train.workdir import write_text
from experiments.overhead import Turn
from experiments.report import csv_text
from experiments.wire import checks
from experiments.wire.methods import Case, METHODS, PARTS, SILENT, TIME_PERIOD
from experiments.wire.network import Network, network, why_no_network
from experiments.wire.plot import plot
from experiments.wire.results import Measured, ROWS
from experiments.wire.runs import measure, measure_overhead, Phase, Window

RATES = (1000, 100, 10)  # 1e6 bits a second, after a part without a limit.
BYTES_PERIOD = 256  # K_x of the bytes and of the overhead.
OVERHEAD_RATE = 100


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the options of the command line."""
  parser = commands.make_parser('experiments.wire', __doc__)
  add = parser.add_argument
  add('--sites', type=int, nargs='+', default=[2, 4], help='processes (default: %(default)s)')
  add('--methods', nargs='+', default=list(METHODS), choices=METHODS, metavar='METHOD',
      help='of %(default)s')  # fmt: skip
  add(
    '--only', nargs='+', default=list(PARTS), choices=PARTS, metavar='PART', help='of %(default)s'
  )
  add(
    '--rates',
    type=float,
    nargs='+',
    default=list(RATES),
    help='1e6 bits a second of the links, for the time (default: %(default)s)',
  )
  add(
    '--batch_size',
    type=int,
    default=6,
    help='sequences of a worker a step, for time and overhead: how long it is (default: %(default)s)',
  )
  add('--starts', type=int, default=3, help='of the overhead (default: %(default)s)')
  add('--results', default='experiments/results', help='folder of tables and plot')
  options = parser.parse_args(argv)
  if min(options.sites) < 2:
    raise UserError(f'--sites is {min(options.sites)}; expected at least 2.')
  if min(options.rates) <= 0:
    raise UserError(f'--rates is {min(options.rates)}; expected more than 0.')
  if 'overhead' in options.only and 'desloc' not in options.methods:
    raise UserError(
      'the overhead is of desloc, which is not among --methods; leave it out by --only.'
    )
  for name in ('batch_size', 'starts'):
    if getattr(options, name) < 1:
      raise UserError(f'--{name} is {getattr(options, name)}; expected at least 1.')
  if why_not := why_no_network():
    raise UserError(f'no network can be made here: {why_not}.')
  return options


def main(argv: Sequence[str] | None = None) -> None:
  options = parse(argv)
  cases = [
    case
    for sites in dict.fromkeys(options.sites)
    for part in dict.fromkeys(options.only)
    for _ in range(options.starts if part == 'overhead' else 1)
    for case in _cases(part, sites, options)
  ]
  results = pathlib.Path(options.results)
  results.mkdir(parents=True, exist_ok=True)
  measured: Measured = {}
  with tempfile.TemporaryDirectory() as runs:
    for number, case in enumerate(bar := tqdm.tqdm(cases, unit='run')):
      bar.set_postfix_str(str(case))
      with network(case.sites) as sites:
        found = _measure(case, sites, pathlib.Path(runs, str(number)))
      measured.setdefault(case, []).append(found)
      tables = _write_results(measured, results)
  found = checks.checks(checks.read_time(results), checks.read_overhead(results))
  print('\n\n'.join([*tables, '\n'.join(map(str, found))]))


def _measure(case: Case, sites: Network, folder: pathlib.Path) -> Sequence[Window] | Sequence[Turn]:
  if case.part == 'overhead':
    return measure_overhead(sites, folder, case.options, OVERHEAD_RATE)
  return measure(
    sites, folder, case.options, case.phases, log_every=case.log_every, devices=case.devices
  )


def _write_results(measured: Measured, results: pathlib.Path) -> list[str]:
  """Writes what there is so far; returns the tables as text."""
  tables = []
  for part, make_rows in ROWS.items():
    rows = make_rows({case: rounds for case, rounds in measured.items() if case.part == part})
    if rows:
      write_text(results / f'wire_{part}.csv', csv_text(list(map(dataclasses.asdict, rows))))
      tables.append(align([rows[0].columns(), *(row.cells() for row in rows)]))
      if part == 'time':
        plot(rows, results / 'wire.png')
  return tables


def _cases(part: str, sites: int, options: argparse.Namespace) -> Iterator[Case]:
  """Yields the runs of one part, of `PARTS`."""
  methods = dict.fromkeys(options.methods)
  cycle = 6 * BYTES_PERIOD  # Of all three periods of DES-LOC.
  timed = functools.partial(Case, sites=sites, part=part, batch_size=options.batch_size)
  if part == 'bytes':
    for method in methods:
      yield Case(method, sites, BYTES_PERIOD, (Phase(1000, 512 if method == 'ddp' else cycle),))
    if 'desloc' in methods:
      yield Case('desloc', sites, BYTES_PERIOD, (Phase(1000, cycle),), devices=2)
  elif part == 'time':
    for method in (SILENT, *methods):
      steps = 24 if method == 'ddp' else 6 * TIME_PERIOD
      phases = tuple(Phase(rate, steps) for rate in (None, *options.rates))
      yield timed(method, period=TIME_PERIOD, phases=phases)
  else:
    yield timed('desloc', period=BYTES_PERIOD, phases=(Phase(OVERHEAD_RATE, cycle),))


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # The network goes with this process.
  with commands.one_line_errors():
    main()
