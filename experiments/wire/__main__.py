"""Bytes and time of each method on a real wire, between processes with a slow network between them.

  python -m experiments.wire

Each process is a worker in a network namespace of its own; `tc ... tbf` throttles what it sends and
the kernel counts the bytes (network.py). Needs root and iproute2.

Writes experiments/results/wire_bytes.csv, wire_time.csv and wire.png. Bytes: at K_x = 256, over whole
cycles of all periods, beside the ledger's. Time: tokens/s at each rate, beside what the planner says
of the same ledger, with the time of a step without communication as measured. A machine is not equally
fast all of the time: with --rounds all methods take turns so often, and medians are what is written.
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
from experiments.report import csv_text
from experiments.wire.methods import Case, METHODS, SILENT, TIME_PERIOD
from experiments.wire.network import network, why_no_network
from experiments.wire.plot import plot
from experiments.wire.results import bytes_row, BytesRow, Measured, time_rows, TimeRow
from experiments.wire.runs import measure, Phase

RATES = (1000, 100, 10)  # 1e6 bits a second, after a part without a limit.
BYTES_PERIOD = 256  # K_x.
LONG_RATE = 100  # At which DES-LOC with the longer period is timed too.


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the options of the command line."""
  parser = commands.make_parser('experiments.wire', __doc__)
  add = parser.add_argument
  add('--sites', type=int, nargs='+', default=[2, 4], help='processes (default: %(default)s)')
  add('--methods', nargs='+', default=list(METHODS), choices=METHODS, metavar='METHOD',
      help='of %(default)s')  # fmt: skip
  add('--only', choices=('bytes', 'time'), help='of the two parts; default: both')
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
    default=4,
    help='sequences a worker and step for the time: how long a step is (default: %(default)s)',
  )
  add(
    '--rounds', type=int, default=1, help='times that each method is timed (default: %(default)s)'
  )
  add('--results', default='experiments/results', help='folder of tables and plot')
  options = parser.parse_args(argv)
  if min(options.sites) < 2:
    raise UserError(f'--sites is {min(options.sites)}; expected at least 2.')
  if min(options.rates) <= 0:
    raise UserError(f'--rates is {min(options.rates)}; expected more than 0.')
  if options.batch_size < 1:
    raise UserError(f'--batch_size is {options.batch_size}; expected at least 1.')
  if options.rounds < 1:
    raise UserError(f'--rounds is {options.rounds}; expected at least 1.')
  if why_not := why_no_network():
    raise UserError(f'no network can be made here: {why_not}.')
  return options


def main(argv: Sequence[str] | None = None) -> None:
  options = parse(argv)
  parts = [options.only] if options.only else ['bytes', 'time']
  cases = [
    case
    for sites in options.sites
    for part in parts
    for _ in range(options.rounds if part == 'time' else 1)
    for case in _cases(part, sites, options)
  ]
  results = pathlib.Path(options.results)
  results.mkdir(parents=True, exist_ok=True)
  measured: Measured = {}
  with tempfile.TemporaryDirectory() as runs:
    for number, case in enumerate(bar := tqdm.tqdm(cases, unit='run')):
      bar.set_postfix_str(str(case))
      with network(case.sites) as sites:
        folder = pathlib.Path(runs, str(number))
        windows = measure(
          sites, folder, case.options, case.phases, log_every=case.log_every, devices=case.devices
        )
      measured.setdefault(case, []).append(windows)
      tables = _write_results(measured, results)
  print('\n\n'.join(tables))


def _write_results(measured: Measured, results: pathlib.Path) -> list[str]:
  """Writes what there is so far; returns the tables as text."""
  tables = []
  sent = [bytes_row(case, rounds[0][0]) for case, rounds in measured.items() if not case.timed]
  if sent:
    write_text(results / 'wire_bytes.csv', csv_text(list(map(dataclasses.asdict, sent))))
    tables.append(align([BytesRow.columns(), *(row.cells() for row in sent)]))
  took = time_rows({case: rounds for case, rounds in measured.items() if case.timed})
  if took:
    write_text(results / 'wire_time.csv', csv_text(list(map(dataclasses.asdict, took))))
    plot(took, results / 'wire.png')
    tables.append(align([TimeRow.columns(), *(row.cells() for row in took)]))
  return tables


def _cases(part: str, sites: int, options: argparse.Namespace) -> Iterator[Case]:
  if part == 'bytes':
    for method in options.methods:
      yield Case(
        method, sites, BYTES_PERIOD, phases=(Phase(1000, 128 if method == 'ddp' else 1536),)
      )
    if 'desloc' in options.methods:
      yield Case('desloc', sites, BYTES_PERIOD, phases=(Phase(1000, 1536),), devices=2)
    return
  timed = functools.partial(Case, sites=sites, timed=True, batch_size=options.batch_size)
  for method in dict.fromkeys((SILENT, *options.methods)):
    cycle = 24 if method == 'ddp' else 6 * TIME_PERIOD
    phases = tuple(Phase(rate, cycle) for rate in (None, *options.rates))
    yield timed(method, period=TIME_PERIOD, phases=phases)
  if 'desloc' in options.methods and LONG_RATE in options.rates:
    yield timed('desloc', period=BYTES_PERIOD, phases=(Phase(LONG_RATE, 6 * BYTES_PERIOD),))


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # The network goes with this process.
  with commands.one_line_errors():
    main()
