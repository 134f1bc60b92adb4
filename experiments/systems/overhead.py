"""What averaging costs where it runs: by how much longer a step of a method takes than a local one.

  python -m experiments.systems.overhead --config=configs/tiny.py --config.periods.params=256

Trains over whole cycles of all periods and times in turn the local steps up to an average, which send
nothing and wait for no other process, and by itself the step that averages, for which all wait for
the slowest. Both are of one program in one run: another run, even of the same program in the same
process, differs by some percent in speed. A method that averages at each step (DDP) is timed in turn
with local steps of DES-LOC. With --config.sync.behind local steps are those with nothing on its way, and
nothing else is sent while a turn is made. On hosts and links of your own start it in each process with
--coordinator, --num_processes and --process_id.
"""

import argparse
from collections.abc import Sequence
import dataclasses
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
from desloc_jax.commands import Option
from desloc_jax.errors import UserError
from desloc_jax.hosts.agreement import check_same_run
from desloc_jax.hosts.peers import peers
from desloc_jax.hosts.platforms import prepare_cpus
from desloc_jax.logs.metrics import progress_bar
from desloc_jax.logs.workdir import write_text
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.options.help_text import options_help
from desloc_jax.options.values import with_presets
from desloc_jax.tables import align
from desloc_jax.train import cli
from desloc_jax.train.job import make_job
from desloc_jax.train.speed.in_flight import InFlight
from desloc_jax.train.speed.inputs import step_inputs
from desloc_jax.valid import at_least
from experiments import command
from experiments.report import Check, csv_text
from experiments.scales import changed
from experiments.sweep import load_config
from experiments.systems.hidden import is_hidden, seconds_of_turns

CYCLE = 6  # Times K_x steps, in which all three averages come at their default periods.
STRETCH = 15  # Steps until their time is taken.


def period_of(config: config_dict.ConfigDict) -> int:
  """Returns the steps from one average to the next: K_x, or 1 for DDP."""
  return 1 if METHODS[config.method].gradients else config.periods.params


def turn_of(config: config_dict.ConfigDict) -> int:
  """Returns the steps of a turn: K_x, of which the last averages, or some where each does."""
  period = period_of(config)
  return period if period > 1 else STRETCH


def never_due(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """Returns the same config, of DES-LOC in DDP's place, with averages that never come due."""
  never = config.steps + 1
  options = {f'periods.{name}': never for name, period in config.periods.items() if period}
  options['periods.params'] = never
  if METHODS[config.method].gradients:
    options['method'] = 'desloc'
  return changed(config, options)


@dataclasses.dataclass(frozen=True)
class Turn:
  """Some local steps and one that averages: seconds of a mean step.

  Attributes:
    step_s: of all: the local steps of the slowest process, then the step that averages.
    waiting_s: of these, by how much the slowest process' local steps are longer than `local_step_s`,
      for which the others wait before the average; None where each step averages. Of syncs behind the
      steps, in which a process waited for one to land.
    local_step_s: of the local ones, the mean of all processes while none waits.
  """

  step_s: float
  waiting_s: float | None
  local_step_s: float

  @property
  def overhead(self) -> float:
    """By what share of a local step a step takes longer."""
    return self.step_s / self.local_step_s - 1

  @property
  def waiting(self) -> float | None:
    """What part of it is waiting, for the slowest process or for a sync."""
    return None if self.waiting_s is None else self.waiting_s / self.local_step_s

  @staticmethod
  def columns() -> tuple[str, ...]:
    return 'step', 'local step', 'longer by', 'of it waiting'

  def cells(self) -> tuple[str, ...]:
    milliseconds = (f'{1e3 * seconds:.1f} ms' for seconds in (self.step_s, self.local_step_s))
    waiting = '-' if self.waiting is None else f'{self.waiting:.1%}'
    return *milliseconds, f'{self.overhead:+.1%}', waiting


class Training:
  """A run that goes on by as many steps as it is asked for."""

  def __init__(self, config: config_dict.ConfigDict):
    self._job = make_job(config)
    self._state = self._job.program.make_state()
    self._inputs = step_inputs(self._job, 0)
    self._in_flight = InFlight()

  def advance(self, steps: int) -> None:
    """Makes so many steps."""
    for _ in range(steps):
      self._state, metrics = self._job.train_step(self._state, *next(self._inputs))
      self._in_flight.add(metrics)
    jax.block_until_ready(self._state)


def measure(config: config_dict.ConfigDict, turns: int) -> list[Turn]:
  """Trains, with a bar over the turns, of which the first do not count."""
  steps = turn_of(config)
  if is_hidden(config):  # Without a bar: its process would have to wait for the turns.
    first = 1 + warmup_turns(steps)
    return [Turn(*seconds) for seconds in seconds_of_turns(config, first + turns)[first:]]
  training = Training(config)
  local = training if period_of(config) > 1 else Training(never_due(config))
  first = warmup_turns(steps)
  bar = progress_bar(0, first + turns, peers().is_first, unit='turn')
  taken = []
  with bar:
    for _ in range(first + turns):
      taken.append(take_turn(training, local, steps))
      bar.update()
  return taken[first:]


def warmup_turns(steps: int) -> int:
  """Returns how many turns of so many steps do not count: those of the first `STRETCH`."""
  return math.ceil(STRETCH / steps)


def take_turn(training: Training, local: Training, steps: int) -> Turn:
  """Makes so many steps of `training`: local ones and a last that averages.

  Where another one is `local`, each step averages, and it makes as many to compare with.
  """
  averaging = 1 if local is training else steps
  own = steps - averaging
  made = own or steps
  here = _seconds(local, made), _seconds(training, averaging)
  everywhere = zip(*peers().gather(here), strict=True)
  local_s, average_s = (np.array(seconds) for seconds in everywhere)
  slowest_step_s, mean_step_s = local_s.max() / made, free_step(local_s, made)
  return Turn(
    step_s=(own * slowest_step_s + average_s.max()) / steps,
    waiting_s=own * (slowest_step_s - mean_step_s) / steps if own else None,
    local_step_s=mean_step_s,
  )


def free_step(seconds: np.ndarray, steps: int) -> float:
  """Returns the seconds of a step of the mean process, while no process waits for another.

  That is until the first one is done, which then leaves the others the cores that it shared.

  Args:
    seconds: [processes, stretches], after which each had made `STRETCH` steps more.
    steps: that each made in all.
  """
  until = seconds[:, -1].min()
  ends = np.minimum(np.arange(1, seconds.shape[1] + 1) * STRETCH, steps)
  made = [np.interp(until, [0, *of_process], [0, *ends]) for of_process in seconds]
  return float(np.mean(until / np.array(made)))


def _seconds(training: Training, steps: int) -> list[float]:
  """Returns the seconds after which this process had made `STRETCH` steps more, or all.

  They begin where all others have come as far: else one that is ahead would wait in the average
  within its time, and the same wait be in the local steps of the slowest.
  """
  peers().wait_for_all()
  start = time.perf_counter()
  taken = []
  for made in range(0, steps, STRETCH):
    training.advance(min(STRETCH, steps - made))
    taken.append(time.perf_counter() - start)
  return taken


def mean_overhead(turns: Sequence[Turn]) -> str:
  """Returns by how much a step is longer, in words.

  The interval is over turns of one start, of which some average more states than others.
  """
  total = Check('', [100 * turn.overhead for turn in turns], unit='%').measured
  waits = [100 * turn.waiting for turn in turns if turn.waiting is not None]
  waiting = f', of it {statistics.mean(waits):.3g}% waiting' if waits else ''
  return f'longer than a local step by {total}{waiting}'


def parse(args: Sequence[str]) -> tuple[argparse.Namespace, config_dict.ConfigDict]:
  """Returns the options of the command line, and the config with what --config.X overrides.

  Raises:
    UserError: one of them cannot be used.
  """
  parser = commands.make_parser('experiments.systems.overhead', __doc__)
  parser.epilog = f'--config.NAME=VALUE changes an option:\n{options_help()}'
  commands.add_options(
    parser,
    config=Option(str, 'a file of configs/'),
    cycles=Option(3, 'of all periods', at_least(1)),
    csv=Option(pathlib.Path, 'a file to write the turns to, unrounded'),
  )
  command.add_processes(parser)
  options, rest = parser.parse_known_args(args)
  config = load_config(options.config)
  command.override(config, rest)
  if options.csv and not pathlib.Path(options.csv).parent.is_dir():
    raise UserError(f'--csv is {options.csv}; its folder does not exist.')
  if not (METHODS[config.method].gradients or config.periods.params > 0):
    raise UserError(f'periods.params is {config.periods.params}; expected at least 1.')
  for name, period in config.periods.items():
    if period and period % period_of(config):
      raise UserError(
        f'periods.{name} is {period}; expected a multiple of periods.params, '
        f'{config.periods.params}, so that all averages fall together.'
      )
  for name, fixed in (('stochastic', False), ('period_growth', 1), ('sync_warmup_steps', 0)):
    if config[name] != fixed:
      raise UserError(f'{name} is {config[name]}; expected {fixed}, for cycles of all periods.')
  if is_hidden(config) and (with_presets(config, 'sync')['delay'] or 0) > period_of(config) - 4:
    raise UserError(
      f'sync.delay leaves no local step of {period_of(config)} with nothing on its way; expected at '
      f'most {period_of(config) - 4}.'
    )
  steps = turn_of(config)
  needed = (warmup_turns(steps) + options.cycles * cycle_of(config)) * steps
  return options, changed(config, {'steps': max(config.steps, needed + 3 * steps)})


def cycle_of(config: config_dict.ConfigDict) -> int:
  """Returns the turns after which the averages of all periods have come equally often."""
  turn, period = turn_of(config), period_of(config)
  others = [] if METHODS[config.method].gradients else filter(None, config.periods.values())
  return math.lcm(turn, CYCLE * period, *others) // turn


def main(argv: Sequence[str]) -> None:
  options, config = parse(argv[1:])
  logging.set_verbosity(logging.ERROR)
  prepare_cpus()
  command.join(options, config)
  check_same_run(config, cycles=options.cycles)
  turns = measure(config, options.cycles * cycle_of(config))
  if not peers().is_first:
    return
  if options.csv:
    write_text(pathlib.Path(options.csv), csv_text(list(map(dataclasses.asdict, turns))))
  print(align([Turn.columns(), *(turn.cells() for turn in turns)]))
  print(f'\n{mean_overhead(turns)}')


if __name__ == '__main__':
  cli.exit_with_one_line(main)(sys.argv)
