"""The best three settings of each method, on four more seeds, and the one that is chosen.

  python -m experiments.extensions.finalists --processes=2

Two seeds, as `experiments.extensions.tuning` has them, choose rates at which some seeds go astray.
Here the three best of each method, again as many runs for each, are trained on four other seeds that
no result has. The least mean over all six is chosen: a seed that goes astray counts in it.
`experiments.extensions.tuned` and `frontier` take what is chosen.
"""

from collections.abc import Mapping, Sequence
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


def finalists_of(scale: Scale) -> dict[str, list[Candidate]]:
  """Returns the best settings of each method in the sweep, the best first.

  Raises:
    UserError: there is no sweep of this scale.
  """
  swept = tuning.losses_in('tuning', scale)
  return {method: tuning.in_order(losses)[:FINALISTS] for method, losses in swept.items()}


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each finalist of each method, for each seed."""
  return [
    tuning.run_of(scale, method, dict(candidate), tuning.SEEDS + seed)
    for seed in range(min(scale.seeds, SEEDS))
    for method, candidates in finalists_of(scale).items()
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
    losses = _of_both(before[method], tuning.by_candidate(group))
    first = tuning.in_order(losses)[0]
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
  return {
    method: dict(tuning.in_order(_of_both(before[method], losses))[0])
    for method, losses in after.items()
  }


def _of_both(
  before: Mapping[Candidate, list[float]], after: Mapping[Candidate, list[float]]
) -> dict[Candidate, list[float]]:
  return {candidate: before[candidate] + losses for candidate, losses in after.items()}


if __name__ == '__main__':
  command.main(sys.modules[__name__])
