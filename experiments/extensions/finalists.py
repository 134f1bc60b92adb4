"""The best three settings of each method, on four more seeds, and the one that is chosen.

  python -m experiments.extensions.finalists --processes=2

Two seeds, as `experiments.extensions.tuning` has them, choose rates at which one seed in three goes astray.
Here the three best of each method, again as many runs for each, are trained on four other seeds that
no result has. The least mean over all six is chosen: a seed that goes astray counts in it.
`experiments.extensions.tuned` and `frontier` take what is chosen.
"""

from collections.abc import Sequence
import statistics
import sys
from typing import Any

from experiments import command, plots
from experiments.extensions import tuning
from experiments.extensions.tuning import Candidate, RATE
from experiments.report import grouped, mean_spread, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import Scale

FINALISTS = 3
SEEDS = 4


def chosen(scale: Scale) -> dict[str, list[Candidate]]:
  """Returns the best settings of each method in the sweep, the best first.

  Raises:
    UserError: there is no sweep of this scale.
  """
  swept = tuning.losses_in('tuning', scale)
  return {
    method: sorted(losses, key=lambda each: statistics.mean(losses[each]))[:FINALISTS]
    for method, losses in swept.items()
  }


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each finalist of each method, for each seed."""
  return [
    tuning.run_of(scale, method, dict(candidate), tuning.SEEDS + seed)
    for seed in range(min(scale.seeds, SEEDS))
    for method, candidates in chosen(scale).items()
    for candidate in candidates
  ]


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the finalists, and which of them is chosen."""
  before = tuning.losses_in('tuning', scale)
  figure, (panel,) = plots.panels(
    1, f'{tuning.settings(scale)["steps"]} steps, K_x = {scale.config.periods.params}: each seed of the '
    'finalists, those of the chosen filled', 9,
  )  # fmt: skip
  figure.set_figheight(8)
  names = tuning.names()
  rows = [('method', *names, 'validation loss', 'worst seed', 'chosen')]
  for method, group in grouped(results).items():
    after = tuning.by_candidate(group)
    losses = {each: before[method][each] + values for each, values in after.items()}
    first = min(losses, key=lambda each: statistics.mean(losses[each]))
    for candidate in sorted(losses):
      values, chosen_one = losses[candidate], candidate == first
      settings = {name: f'{value:g}' for name, value in candidate}
      row = [f'{method}, {settings[RATE]}'] * len(values)
      face = 'tab:blue' if chosen_one else 'none'
      panel.scatter(values, row, s=24, facecolors=face, edgecolors='tab:blue')
      cells = [settings.get(name, '') for name in names]
      chosen_word = 'yes' if chosen_one else ''
      rows.append((method, *cells, mean_spread(values), f'{max(values):.4f}', chosen_word))
  panel.invert_yaxis()
  panel.set(xlabel=f'final {plots.LOSS}', ylabel='method, learning rate')
  return Report('What each method is tuned to', rows_of(results), rows, [], figure)


def best(scale: Scale) -> dict[str, dict[str, Any]]:
  """Returns the settings of each method with the least mean loss over the seeds of both rounds.

  Raises:
    UserError: a round of this scale is missing.
  """
  before, after = (tuning.losses_in(name, scale) for name in ('tuning', 'finalists'))
  means = {
    method: {
      each: statistics.mean(before[method][each] + values) for each, values in round_.items()
    }
    for method, round_ in after.items()
  }
  return {method: dict(min(each, key=each.__getitem__)) for method, each in means.items()}


if __name__ == '__main__':
  command.main(sys.modules[__name__])
