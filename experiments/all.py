"""All experiments one after another, with the time left of all of them.

  python -m experiments.all --scale=cpu

Each writes its results as its own command does. Processes that share --runs divide the work: start
the same command as often as there are cards, or machines that share the folder.
"""

import importlib

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
TUNED = ('tuned', 'frontier')  # Of what `tuning` has found.


def main() -> None:
  first, then = (
    {name: importlib.import_module(f'experiments.paper.{name}') for name in names}
    for names in (NAMES, TUNED)
  )
  command.run_experiments(first, 'experiments.all', __doc__, then)


if __name__ == '__main__':
  main()
