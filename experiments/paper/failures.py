"""Workers that join in mid-run, and workers that fail at a rate: who stays stable?

  python -m experiments.paper.failures

The paper doubles the workers at a step; the new ones begin from the averaged state. DES-LOC and
Local Adam stay stable, methods that keep or reset their moments are perturbed. Here the run has all
workers from the start and half of them are away until then (they take over the averages when they
come). In the second part every worker fails at random and comes back some time later.

Where the scale has maps: the loss of the heuristics above DES-LOC's, over how long a worker that fails stays
away and how often it is.

`jump` is the largest gradient norm in the rounds after the joining over the median before it.
"""

from collections.abc import Mapping, Sequence
import itertools
import statistics
import sys

from experiments import command, plots
from experiments.report import (
  above,
  Check,
  grouped,
  Groups,
  loss_table,
  mean_spread,
  Report,
  rows_of,
)
from experiments.runs import Result, Run
from experiments.scales import Options, Scale

METHODS = ('desloc', 'local_adam', 'favg_opt', 'favg_reset')
ROUNDS = 4  # Of K_x steps after the joining, in which a jump is looked for.
AWAY_ROUNDS, LOST = 3, 0.2  # How long a worker that fails stays away, and how often it is, about.
MAP_ROUNDS, MAP_SHARES = (1, 3, 12), (0.1, 0.2, 0.4)
HEURISTICS = {'favg_opt': 'FAVG+OPT', 'favg_reset': 'FAVG-OPT'}


def runs(scale: Scale) -> list[Run]:
  """Returns, for each method and seed, a run with workers that join and one with workers that fail."""
  workers, period = scale.config.workers, scale.config.periods.params
  parts = {
    'joining': {
      'workers': 2 * workers,
      'failures.away': f'{workers}-{2 * workers - 1}:1-{joining_step(scale) - 1}',
    },
    'failing': _failing(AWAY_ROUNDS, LOST, period),
  }
  methods = dict.fromkeys(parts, METHODS)
  if scale.maps:
    for rounds, lost in itertools.product(MAP_ROUNDS, MAP_SHARES):
      parts[_place(rounds, lost)] = _failing(rounds, lost, period)
      methods[_place(rounds, lost)] = ('desloc', *HEURISTICS)
  return [
    run
    for part, options in parts.items()
    for run in scale.runs(
      {method: {'method': method, **options} for method in methods[part]}, labels={'part': part}
    )
  ]


def _failing(rounds: int, lost: float, period: int) -> Options:
  """Returns options with which workers are away for so many rounds, about such a share of the time."""
  return {
    'failures.rate': lost / (1 - lost) / (rounds * period), 'failures.steps': rounds * period,
  }  # fmt: skip


def _place(rounds: int, lost: float) -> str:
  return f'{rounds} rounds, {lost:.0%} away'


def joining_step(scale: Scale) -> int:
  """Returns the first step that the new workers count in: an average, at about half of the run."""
  period = scale.config.periods.params
  return round(scale.config.steps / 2 / period) * period


def jump(result: Result, scale: Scale) -> float:
  """Returns the largest gradient norm after the joining over the median of as many steps before."""
  step, length = joining_step(scale), ROUNDS * scale.config.periods.params
  norms = [(line['step'], line['grad_norm']) for line in result.lines if 'grad_norm' in line]
  before = [norm for at, norm in norms if step - length <= at < step]
  # The loss and gradient of the joining step are still at the parameters before it.
  after = [norm for at, norm in norms if step < at <= step + length]
  return max(after) / statistics.median(before)


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns losses and gradient norms of both parts, and how far each method is perturbed."""
  parts = {part: grouped(group) for part, group in grouped(results, 'part').items()}
  places = {_place(*each): each for each in itertools.product(MAP_ROUNDS, MAP_SHARES)}
  map_of = {places[part]: parts.pop(part) for part in list(parts) if part in places}
  figure, panels = plots.panels(
    8 if map_of else 6, f'Workers that join at step {joining_step(scale)}, and that fail; K_x = '
    f'{scale.config.periods.params}: mean and range of {scale.seeds} seeds', 4.5
  )  # fmt: skip
  left = iter(panels)
  for part, groups in parts.items():
    for metric, label in (
      ('loss', 'training loss (nats per token)'),
      ('grad_norm', 'gradient norm'),
      ('activation_norm', 'activations before the final norm (RMS)'),
    ):
      panel = next(left)
      plots.curves(panel, groups, y=metric)
      panel.set(xlabel='step', ylabel=label, title=part, yscale='log')
      if part == 'joining':
        panel.axvline(joining_step(scale), color='gray', ls=':')
  for method, panel in zip(HEURISTICS if map_of else (), left, strict=True):
    _draw_map(panel, method, map_of)
  panels[0].legend(fontsize='small')
  jumps = {method: [_jump(r, scale) for r in parts['joining'][method]] for method in METHODS}
  rows = loss_table(
    {f'{m}, {part}': g for part, groups in parts.items() for m, g in groups.items()}, 'method'
  )
  none = ['-'] * len(METHODS)
  column = ['jump', *(mean_spread(jumps[method], 2) for method in METHODS), *none]
  table = [(*row, cell) for row, cell in zip(rows, column, strict=True)]
  return Report(
    'Workers that join and fail', rows_of(results), table, _checks(parts, jumps), figure
  )


def _draw_map(panel, method: str, map_of: Mapping[tuple[int, float], Groups]) -> None:
  percent = [
    [
      statistics.mean(above(map_of[rounds, lost][method], map_of[rounds, lost]['desloc']))
      for lost in MAP_SHARES
    ]
    for rounds in MAP_ROUNDS
  ]
  plots.heat_map(panel, percent, MAP_ROUNDS, [f'{lost:.0%}' for lost in MAP_SHARES], 2)
  panel.set(
    xlabel='share of the time that a worker is away', ylabel='rounds away',
    title=f"{HEURISTICS[method]}: loss above DES-LOC's",
  )  # fmt: skip


def _jump(result: Result, scale: Scale) -> float:
  return float('inf') if result.diverged else jump(result, scale)


def _checks(parts, jumps) -> list[Check]:
  failing = parts['failing']
  return [
    *(
      Check(f'{name} stays stable as workers join: the gradient norm stays below twice its median',
            jumps[method], at_most=2, unit='x', paper='stable')
      for method, name in (('desloc', 'DES-LOC'), ('local_adam', 'Local Adam'))
    ),
    *(
      Check(f'{name} is perturbed more than DES-LOC as workers join (ratio of jumps)',
            [a / b for a, b in zip(jumps[method], jumps['desloc'], strict=True)],
            at_least=1, unit='x', paper='perturbed')
      for method, name in HEURISTICS.items()
    ),
    Check("with failing workers DES-LOC's loss is at most 1% above Local Adam's",
          above(failing['desloc'], failing['local_adam']), at_most=1, unit='%'),
    Check("and FAVG+OPT's loss is above DES-LOC's",
          above(failing['favg_opt'], failing['desloc']), at_least=0, unit='%'),
  ]  # fmt: skip


if __name__ == '__main__':
  command.main(sys.modules[__name__])
