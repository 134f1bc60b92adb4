"""Eight settings of each method, swept on seeds that no result has.

  python -m experiments.extensions.tuning --processes=2

Each method gets as many runs: eight learning rates, in factors of the square root of two. A method with
a setting of its own (the outer momentum of DiLoCo, the weight of MT-DAO's gradient) gets four rates
and two values of that. Runs are long enough for 64 averages of the parameters and 10 of the second
moment. `experiments.extensions.finalists` chooses among the best three of each.
"""

from collections.abc import Mapping, Sequence
import csv
import itertools
import math
import statistics
import sys
from typing import Any

from desloc_jax.errors import UserError
from experiments import command, plots
from experiments.report import grouped, mean_spread, Report, RESULTS, rows_of
from experiments.runs import Result, Run
from experiments.scales import changed, Scale

FIRST_SEED = 100
SEEDS = 2
RATE = 'inner.learning_rate'
Candidate = tuple[tuple[str, float], ...]  # Settings by name.
MUON = {'inner.name': 'muon', 'inner.b1': None, 'inner.b2': None}
# Of each method: what it is, the middle of its rates, and the setting of its own with two values.
METHODS: Mapping[str, tuple[Mapping[str, Any], float, Mapping[str, Sequence[Any]]]] = {
  'ddp': ({}, 4e-3, {}),
  'local_adam': ({}, 4e-3, {}),
  'desloc': ({}, 4e-3, {}),
  'favg_opt': ({}, 4e-3, {}),
  'favg_reset': ({}, 4e-3, {}),
  'diloco': ({}, 4e-3, {'outer.momentum': (0.5, 0.9)}),
  'mt_dao': ({}, 4e-3, {'inner.w': (0.9, 0.98)}),
  'Local Muon': ({'method': 'local_adam', **MUON}, 2e-2, {}),
  'DES-LOC-Muon': ({'method': 'desloc', **MUON}, 2e-2, {}),
}


def settings(scale: Scale) -> dict[str, Any]:
  """Returns what the runs have in common, of this experiment and of `tuned`."""
  steps = 64 * scale.config.periods.params if scale.name != 'test' else scale.config.steps
  return {
    'steps': steps, 'schedule.warmup_steps': max(1, steps // 8), 'eval.every': max(1, steps // 8),
    'checkpoint.every': steps,
  }  # fmt: skip


def candidates(method: str) -> list[dict[str, Any]]:
  """Returns the settings that are tried of a method."""
  _, middle, own = METHODS[method]
  rates = [middle * 2 ** (k / 2) for k in (range(-1, 3) if own else range(-2, 6))]
  values = itertools.product(*own.values())
  tried = [dict(zip(own, each, strict=True)) for each in values]
  return [{RATE: float(f'{rate:.3g}'), **each} for each in tried for rate in rates]


def options_of(method: str) -> dict[str, Any]:
  """Returns what makes a method, without what is tuned."""
  return {'method': method, **METHODS[method][0]}


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each candidate of each method, for each seed."""
  return [
    run_of(scale, method, candidate, seed)
    for seed in range(min(scale.seeds, SEEDS))
    for method in METHODS
    for candidate in candidates(method)
  ]


def run_of(scale: Scale, method: str, candidate: Mapping[str, Any], seed: int) -> Run:
  """Returns a run of a method with these settings, on a seed that no result has."""
  options = {**settings(scale), **options_of(method), **candidate, 'seed': FIRST_SEED + seed}
  labels = {'variant': method, **{name: candidate.get(name, '') for name in names()}}
  return Run(labels, changed(scale.config, options))


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the best of each method on these seeds, and whether it is at an end of what was tried."""
  groups = grouped(results)
  figure, (panel,) = plots.panels(
    1, f'{settings(scale)["steps"]} steps, K_x = {scale.config.periods.params}: the mean of each '
    'candidate', 9,
  )  # fmt: skip
  rows = [('method', *names(), 'validation loss', 'at an end')]
  for method, group in groups.items():
    losses = by_candidate(group)
    for name, part in _curves(losses).items():
      label = f'{method}{name}'
      plots.mean_line(panel, list(part), list(part.values()), label, **plots.style(label))
    best = in_order(losses)[0]
    rates = [dict(candidate)[RATE] for candidate in losses]
    ends = dict(best)[RATE] in (min(rates), max(rates))
    cells = [f'{dict(best)[name]:g}' if name in dict(best) else '' for name in names()]
    rows.append((method, *cells, mean_spread(losses[best]), 'yes' if ends else 'no'))
  panel.set(xlabel='learning rate', ylabel=f'final {plots.LOSS}', xscale='log')
  panel.legend(fontsize='small')
  return Report('Eight settings of each method', rows_of(results), rows, [], figure)


def losses_in(experiment: str, scale: Scale) -> dict[str, dict[Candidate, list[float]]]:
  """Returns the losses of each candidate of each method in the results of the scale, or the committed.

  Raises:
    UserError: there are none of this scale.
  """
  name = f'{experiment}-{scale.name}'
  paths = [folder / name / 'results.csv' for folder in (scale.results, RESULTS) if folder]
  path = next((path for path in paths if path.exists()), None)
  if path is None:
    raise UserError(
      f'{paths[0]} does not exist; run python -m experiments.extensions.{experiment} '
      f'--scale={scale.name} first.'
    )
  with path.open(newline='') as file:
    rows = list(csv.DictReader(file))
  losses: dict[str, dict[Candidate, list[float]]] = {}
  for row in rows:
    candidate = tuple((name, float(row[name])) for name in names() if row.get(name))
    losses.setdefault(row['variant'], {}).setdefault(candidate, []).append(float(row['loss']))
  return losses


def in_order(losses: Mapping[Candidate, Sequence[float]]) -> list[Candidate]:
  """Returns the candidates of a method, that of the least mean loss first."""
  return sorted(losses, key=lambda candidate: statistics.mean(losses[candidate]))


def names() -> list[str]:
  """Returns the options that are tuned, of some method."""
  return [RATE, *dict.fromkeys(name for _, _, own in METHODS.values() for name in own)]


def by_candidate(group: Sequence[Result]) -> dict[Candidate, list[float]]:
  """Returns the losses of a method's candidates."""
  losses: dict[Candidate, list[float]] = {}
  for result in group:
    labels = result.run.labels
    candidate = tuple((name, labels[name]) for name in names() if labels[name] != '')
    losses.setdefault(candidate, []).append(result.loss)
  return losses


def _curves(losses: Mapping[tuple, list[float]]) -> dict[str, dict[float, list[float]]]:
  """Returns losses by learning rate, by the other settings in words; without those that diverged."""
  curves: dict[str, dict[float, list[float]]] = {}
  for candidate, values in sorted(losses.items()):
    (_, rate), *own = candidate
    words = ''.join(f', {name} {value:g}' for name, value in own)
    if all(map(math.isfinite, values)):
      curves.setdefault(words, {})[rate] = values
  return curves


if __name__ == '__main__':
  command.main(sys.modules[__name__])
