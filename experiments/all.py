"""All experiments one after another, with the time left of all of them.

  python -m experiments.all --scale=cpu

Each writes its results as its own command does. Processes that share --runs divide the work: start
the same command as often as there are cards, or machines that share the folder.
"""

import importlib
import itertools

from experiments import command

NAMES = (
  'toy',
  'wallclock',
  'communication',
  'periods',
  'half_lives',
  'nesterov',
  'muon',
  'heterogeneous',
  'scaffold',
  'disjoint',
  'failures',
  'scale',
  'beyond',
  'syncs',
  'attacks',
  'neighbours',
  'delays',
  'merging',
  'tuning',
)
# Each of what those before it have found.
THEN = (('finalists',), ('tuned', 'frontier'))
TUNED = tuple(itertools.chain(*THEN))


def main() -> None:
  passes = [
    {name: importlib.import_module(f'experiments.paper.{name}') for name in names}
    for names in (NAMES, *THEN)
  ]
  command.run_experiments(passes, 'experiments.all', __doc__)


if __name__ == '__main__':
  main()
