"""What averaging costs where it runs: steps of a method, and of one without communication, in turn.

  python -m experiments.overhead --config=configs/tiny.py --config.periods.params=256

Both train in the same processes over whole cycles of all periods, a few steps of one and then of the
other: two runs, even of one program, differ by some percent in speed, and a machine changes its own.
On hosts and links of your own start it in each process with --coordinator, --num_processes and
--process_id.
"""

import argparse
from collections.abc import Sequence
import csv
import dataclasses
import pathlib
import sys
import time

from absl import logging
import jax
from ml_collections import config_dict
import tqdm

from desloc_jax import commands
from desloc_jax.errors import UserError
from desloc_jax.tables import align
from desloc_jax.train import cli, exchange, processes
from desloc_jax.train.config import options_help
from desloc_jax.train.in_flight import InFlight
from desloc_jax.train.inputs import step_inputs
from desloc_jax.train.job import make_job
from experiments import command
from experiments.report import Check
from experiments.scales import changed
from experiments.sweep import load_config

# Averages of nothing, nor votes on them.
SILENT = dict.fromkeys(('periods.params', 'periods.mu', 'periods.nu'), 0) | {'health.check': False}
CYCLE = 6  # Turns of K_x steps in which all three averages come at their default periods.
STRETCH = 16  # Steps of one until the other goes on.


@dataclasses.dataclass(frozen=True)
class Turn:
  """K_x steps of each: seconds of a mean step of the method, and of a silent one.

  All processes wait for the slowest at the end of each stretch, silent or not.
  """

  step_s: float
  silent_step_s: float

  @property
  def overhead(self) -> float:
    """By what share of a silent step one of the method takes longer."""
    return self.step_s / self.silent_step_s - 1

  @staticmethod
  def columns() -> tuple[str, ...]:
    return 'step', 'without communication', 'longer by'

  def cells(self) -> tuple[str, ...]:
    milliseconds = (f'{1e3 * seconds:.1f} ms' for seconds in (self.step_s, self.silent_step_s))
    return *milliseconds, f'{self.overhead:+.1%}'


class Training:
  """A run that goes on by as many steps as it is asked for."""

  def __init__(self, config: config_dict.ConfigDict):
    self._job = make_job(config)
    self._state = self._job.make_state()
    self._inputs = step_inputs(self._job, 0)
    self._in_flight = InFlight()

  def advance(self, steps: int) -> None:
    """Makes so many steps."""
    for _ in range(steps):
      self._state, metrics = self._job.train_step(self._state, *next(self._inputs))
      self._in_flight.add(metrics)
    jax.block_until_ready(self._state)


def measure(config: config_dict.ConfigDict, cycles: int) -> list[Turn]:
  """Trains both, with a bar over the turns, of which the first is not counted."""
  period = config.periods.params
  method, silent = Training(config), Training(changed(config, {'method': 'desloc', **SILENT}))
  turns = tqdm.trange(cycles * CYCLE + 1, unit='turn', disable=not processes.writes() or None)
  taken = []
  for _ in turns:
    taken.append(_turn(method, silent, period))
  return taken[1:]


def _turn(method: Training, silent: Training, period: int) -> Turn:
  stretches = [min(STRETCH, period - start) for start in range(0, period, STRETCH)]
  seconds = [(_seconds(method, steps), _seconds(silent, steps)) for steps in stretches]
  return Turn(*(sum(each) / period for each in zip(*seconds, strict=True)))


def _seconds(training: Training, steps: int) -> float:
  start = time.perf_counter()
  training.advance(steps)
  exchange.wait_for_all()  # Else the next stretch would wait for who is late from this one.
  return time.perf_counter() - start


def mean_overhead(turns: Sequence[Turn]) -> str:
  """Returns by how much a step is longer, in words, with its confidence interval."""
  return Check('', [100 * turn.overhead for turn in turns], unit='%').measured


def parse(args: Sequence[str]) -> tuple[argparse.Namespace, config_dict.ConfigDict]:
  """Returns the options of the command line, and the config with what --config.X overrides.

  Raises:
    UserError: one of them cannot be used.
  """
  parser = commands.make_parser('experiments.overhead', __doc__)
  parser.epilog = f'--config.NAME=VALUE changes an option:\n{options_help()}'
  add = parser.add_argument
  add('--config', help='a file of configs/')
  add('--cycles', type=int, default=3, help='of all periods, six turns each (default: %(default)s)')
  add('--csv', help='a file to write the turns to, unrounded')
  command.add_processes(parser)
  options, rest = parser.parse_known_args(args)
  config = load_config(options.config)
  command.override(config, rest)
  if options.cycles < 1:
    raise UserError(f'--cycles is {options.cycles}; expected at least 1.')
  if options.csv and not pathlib.Path(options.csv).parent.is_dir():
    raise UserError(f'--csv is {options.csv}; its folder does not exist.')
  if not config.periods.params:
    raise UserError('periods.params is 0; expected at least 1, the steps of a turn.')
  return options, changed(config, {'steps': (options.cycles * CYCLE + 1) * config.periods.params})


def main(argv: Sequence[str]) -> None:
  options, config = parse(argv[1:])
  logging.set_verbosity(logging.ERROR)
  command.join(options, config)
  turns = measure(config, options.cycles)
  if not processes.writes():
    return
  if options.csv:
    with open(options.csv, 'w', newline='') as file:
      writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Turn)])
      writer.writeheader()
      writer.writerows(map(dataclasses.asdict, turns))
  print(align([Turn.columns(), *(turn.cells() for turn in turns)]))
  print(f'\nlonger than without communication by {mean_overhead(turns)}')


if __name__ == '__main__':
  cli.exit_with_one_line(main)(sys.argv)
