"""What averaging costs where it runs: steps of a method, and of one without communication, in turn.

  python -m experiments.overhead --config=configs/tiny.py --config.periods.params=256

Both train in the same processes over whole cycles of all periods, a few steps of one and then of the
other: two runs, even of one program, differ by some percent in speed, and a machine changes its own.
Steps without communication never wait for another process; those of the method do at each average,
for the slowest. On hosts and links of your own start it in each process with --coordinator,
--num_processes and --process_id.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import statistics
import sys
import time

from absl import logging
import jax
from ml_collections import config_dict
import numpy as np

from desloc_jax import commands
from desloc_jax.errors import UserError
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.tables import align
from desloc_jax.train import cli, exchange, processes
from desloc_jax.train.agreement import check_same_run
from desloc_jax.train.config import options_help
from desloc_jax.train.in_flight import InFlight
from desloc_jax.train.inputs import step_inputs
from desloc_jax.train.job import make_job
from desloc_jax.train.metrics import progress_bar
from desloc_jax.train.workdir import write_text
from experiments import command
from experiments.report import Check, csv_text
from experiments.scales import changed
from experiments.sweep import load_config

CYCLE = 6  # Turns of K_x steps in which all three averages come at their default periods.
STRETCH = 16  # Steps of one until the other goes on.


def silent(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """Returns the same config but for its averages: of nothing."""
  options = {f'periods.{name}': None for name in config.periods}
  options |= {'periods.params': 0, 'sync_warmup_steps': 0}
  if METHODS[config.method].gradients:
    options['method'] = 'desloc'
  return changed(config, options)


@dataclasses.dataclass(frozen=True)
class Turn:
  """K_x steps of each: seconds of a mean step.

  Attributes:
    step_s: of the method: the local steps of the slowest process, then the average.
    waiting_s: of these, what a mean process waits for the slowest before the average.
    silent_step_s: without communication, where none waits: the mean of all processes.
  """

  step_s: float
  waiting_s: float
  silent_step_s: float

  @property
  def overhead(self) -> float:
    """By what share of a silent step one of the method takes longer."""
    return self.step_s / self.silent_step_s - 1

  @property
  def waiting(self) -> float:
    """What part of it is waiting for the slowest process."""
    return self.waiting_s / self.silent_step_s

  @staticmethod
  def columns() -> tuple[str, ...]:
    return 'step', 'without communication', 'longer by', 'of it waiting'

  def cells(self) -> tuple[str, ...]:
    milliseconds = (f'{1e3 * seconds:.1f} ms' for seconds in (self.step_s, self.silent_step_s))
    return *milliseconds, f'{self.overhead:+.1%}', f'{self.waiting:.1%}'


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


def measure(config: config_dict.ConfigDict, turns: int) -> list[Turn]:
  """Trains both, with a bar over the turns, and one before that is not counted."""
  trainings = Training(config), Training(silent(config))
  bar = progress_bar(0, turns + 1, processes.writes(), unit='turn')
  taken = []
  with bar:
    for _ in range(turns + 1):
      taken.append(take_turn(*trainings, config.periods.params))
      bar.update()
  return taken[1:]


def take_turn(method: Training, without: Training, period: int) -> Turn:
  """Makes `period` steps of each, of which the method's last averages."""
  local = {method: 0.0, without: 0.0}
  for number, start in enumerate(range(0, period - 1, STRETCH)):
    for training in (method, without) if number % 2 else (without, method):
      local[training] += _seconds(training, min(STRETCH, period - 1 - start))
  here = [*local.values(), _seconds(method, 1), _seconds(without, 1)]
  everywhere = np.array([json.loads(text) for text in exchange.exchange_text(json.dumps(here))])
  local_s, silent_s, average_s, silent_last_s = everywhere.T  # [processes] each.
  return Turn(
    step_s=(local_s.max() + average_s.max()) / period,
    waiting_s=(local_s.max() - local_s.mean()) / period,
    silent_step_s=(silent_s + silent_last_s).mean() / period,
  )


def _seconds(training: Training, steps: int) -> float:
  """Returns the seconds that steps take in this process, once all others have come as far.

  Else this one would wait for those that the other's steps kept, or have a machine to itself.
  """
  exchange.wait_for_all()
  start = time.perf_counter()
  training.advance(steps)
  return time.perf_counter() - start


def mean_overhead(turns: Sequence[Turn]) -> str:
  """Returns by how much a step is longer, in words; the interval is over turns, not over starts."""
  total = Check('', [100 * turn.overhead for turn in turns], unit='%').measured
  waiting = 100 * statistics.mean(turn.waiting for turn in turns)
  return (
    f'longer than without communication by {total}, of it {waiting:.3g}% waiting for the slowest'
  )


def parse(args: Sequence[str]) -> tuple[argparse.Namespace, config_dict.ConfigDict]:
  """Returns the options of the command line, and the config with what --config.X overrides.

  Raises:
    UserError: one of them cannot be used.
  """
  parser = commands.make_parser('experiments.overhead', __doc__)
  parser.epilog = f'--config.NAME=VALUE changes an option:\n{options_help()}'
  add = parser.add_argument
  add('--config', help='a file of configs/')
  add('--cycles', type=int, default=3, help='of all periods (default: %(default)s)')
  add('--csv', help='a file to write the turns to, unrounded')
  command.add_processes(parser)
  options, rest = parser.parse_known_args(args)
  config = load_config(options.config)
  command.override(config, rest)
  if options.cycles < 1:
    raise UserError(f'--cycles is {options.cycles}; expected at least 1.')
  if options.csv and not pathlib.Path(options.csv).parent.is_dir():
    raise UserError(f'--csv is {options.csv}; its folder does not exist.')
  if not config.periods.params > 0:
    raise UserError(
      f'periods.params is {config.periods.params}; expected at least 1, the steps of a turn.'
    )
  for name, fixed in (('stochastic', False), ('period_growth', 1), ('sync_warmup_steps', 0)):
    if config[name] != fixed:
      raise UserError(f'{name} is {config[name]}; expected {fixed}, for cycles of all periods.')
  needed = (options.cycles * cycle_of(config) + 1) * config.periods.params
  return options, changed(config, {'steps': max(config.steps, needed)})


def cycle_of(config: config_dict.ConfigDict) -> int:
  """Returns the turns after which the averages of all periods have come equally often."""
  period = config.periods.params
  return math.lcm(CYCLE * period, *(other for other in config.periods.values() if other)) // period


def main(argv: Sequence[str]) -> None:
  options, config = parse(argv[1:])
  logging.set_verbosity(logging.ERROR)
  command.join(options, config)
  check_same_run(config, cycles=options.cycles)
  turns = measure(config, options.cycles * cycle_of(config))
  if not processes.writes():
    return
  if options.csv:
    write_text(pathlib.Path(options.csv), csv_text(list(map(dataclasses.asdict, turns))))
  print(align([Turn.columns(), *(turn.cells() for turn in turns)]))
  print(f'\n{mean_overhead(turns)}')


if __name__ == '__main__':
  cli.exit_with_one_line(main)(sys.argv)
