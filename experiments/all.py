"""All experiments one after another, with the time left of all of them.

  python -m experiments.all --scale=cpu

Each writes its results as its own command does. Processes that share --runs divide the work: start
the same command as often as there are cards, or machines that share the folder.
"""

import importlib
import itertools
import types

from experiments import command

PAPER = (
  'toy',
  'wallclock',
  'communication',
  'periods',
  'half_lives',
  'nesterov',
  'muon',
  'heterogeneous',
  'failures',
  'scale',
)
EXTENSIONS = (
  'scaffold',
  'disjoint',
  'beyond',
  'syncs',
  'attacks',
  'neighbours',
  'delays',
  'merging',
  'tuning',
)
NAMES = PAPER + EXTENSIONS
# Each of what those before it have found.
THEN = (('finalists',), ('tuned', 'frontier'))
TUNED = tuple(itertools.chain(*THEN))


def experiment_of(name: str) -> types.ModuleType:
  """Returns the experiment of this name."""
  room = 'paper' if name in PAPER else 'extensions'
  return importlib.import_module(f'experiments.{room}.{name}')


def main() -> None:
  passes = [{name: experiment_of(name) for name in names} for names in (NAMES, *THEN)]
  command.run_experiments(passes, 'experiments.all', __doc__)


if __name__ == '__main__':
  main()
