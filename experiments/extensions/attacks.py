"""Workers that lie, and averages that bear it: a heat map of the loss against clean training.

  python -m experiments.extensions.attacks

Eight workers train by DES-LOC, of which none, one or two send something else than what they have, of
the parameters and of both moments. Each average is told how many lie. Not in the paper; the health
check is on, as always, and sees nothing of it: a worker's own state stays true.

Half of the scale's steps, at its smaller K_x. Two of eight have one seed, as nothing is claimed of them.
"""

from collections.abc import Mapping, Sequence
import statistics
import sys

from desloc_jax.optimizer.syncs import ATTACKS
from experiments import command, plots
from experiments.report import above, Check, mean_spread, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import Options, Scale

WORKERS, FIRST, MOST = 8, 5, 2
AVERAGES = {
  'mean': {},
  'clip_to_median': {},
  'trimmed_mean': {},
  'median': {},
  'geometric_median': {},
  'krum': {},
  'trimmed_mean of neighbours': {'sync.neighbours': True},
  'geometric_median of neighbours': {'sync.neighbours': True},
}
ROBUST = [name for name in AVERAGES if name != 'mean']
CLEAN = 'none'
WITHIN = 3  # Percent above clean training that the best average is to stay.


def runs(scale: Scale) -> list[Run]:
  """Returns, for each seed, a run of each average without attack and under each by one and two."""
  cases = [(CLEAN, 0), *((name, count) for count in range(1, MOST + 1) for name in ATTACKS)]
  return [
    run
    for attack, count in cases
    for run in (scale if count < MOST else scale.with_seeds(1)).runs(
      {name: _options(name, attack, count, scale) for name in AVERAGES},
      labels={'attack': attack, 'liars': count},
    )
  ]


def _options(name: str, attack: str, count: int, scale: Scale) -> Options:
  rule = name.partition(' ')[0]
  # Tokens as in the other experiments, by twice as many workers.
  batch_size = max(1, scale.config.batch_size * scale.config.workers // WORKERS)
  options = {
    'workers': WORKERS, 'batch_size': batch_size, 'steps': scale.config.steps // 2,
    'periods.params': scale.fast, 'eval.every': 0,
  }  # fmt: skip
  options |= {'sync.params': rule, 'sync.moments': rule}
  options |= AVERAGES[name]
  if rule != 'mean':
    options['sync.byzantine'] = count or MOST
  if count:
    options['failures.attack'] = f'{FIRST}-{FIRST + count - 1}:{attack}'
  return options


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the heat map, and what the best average loses at each attack."""
  by: dict[tuple[str, str, int], list[Result]] = {}
  for result in results:
    labels = result.run.labels
    by.setdefault((labels['variant'], labels['attack'], labels['liars']), []).append(result)
  clean = by['mean', CLEAN, 0]
  table = [('average', CLEAN, *(f'{n} {a}' for n in range(1, MOST + 1) for a in ATTACKS))]
  for name in AVERAGES:
    cells = [by[name, CLEAN, 0], *(by[name, a, n] for n in range(1, MOST + 1) for a in ATTACKS)]
    table.append((name, *(mean_spread([r.loss for r in cell], 3) for cell in cells)))
  best = {a: _best(by, a, 1) for a in ATTACKS}
  checks = [
    Check(
      f'{attack} by one of {WORKERS}: the best robust average is at most {WITHIN}% above clean '
      'training',
      above(by[name, attack, 1], clean),
      at_most=WITHIN,
      unit='%',
    )
    for attack, name in best.items()
  ]
  lost = [r for name in ROBUST for a in ATTACKS for r in by[name, a, 1] if r.diverged]
  checks.append(
    Check(
      f'runs of robust averages that diverge with one of {WORKERS}',
      [len(lost)],
      at_most=0,
      exact=True,
    )
  )
  notes = [
    'Validation loss; the first column has no attack, then one worker of '
    f'{WORKERS} lies, then {MOST}. Best with one: '
    f'{", ".join(f"{name} ({attack})" for attack, name in best.items())}.'
  ]
  return Report(
    'Attacks and averages', rows_of(results), table, checks, _figure(by, clean, scale), notes
  )


def _best(by: Mapping, attack: str, liars: int) -> str:
  """Returns the robust average with the least mean loss."""
  return min(ROBUST, key=lambda name: statistics.mean(r.loss for r in by[name, attack, liars]))


def _figure(by: Mapping, clean: Sequence[Result], scale: Scale):
  figure, panels = plots.panels(
    MOST, f'{WORKERS} workers, K_x = {scale.fast}, {scale.config.steps // 2} steps: loss above clean '
    'training', 8
  )  # fmt: skip
  for liars, panel in enumerate(panels, 1):
    columns = [(CLEAN, 0), *((attack, liars) for attack in ATTACKS)]
    percent = [
      [statistics.mean(above(by[(name, *column)], clean)) for column in columns]
      for name in AVERAGES
    ]
    plots.heat_map(panel, percent, list(AVERAGES), [a for a, _ in columns], vmin=0, vmax=30)
    seeds = len(by[ROBUST[0], columns[-1][0], liars])
    panel.set(title=f'{liars} of {WORKERS} lie (seeds: {seeds})')
  return figure


if __name__ == '__main__':
  command.main(sys.modules[__name__])
