"""K_x, K_u and K_v varied one at a time around two base periods: which of them matters.

  python -m experiments.paper.periods

The paper's ablation: the loss follows K_x; K_u matters near the half-life of the first moment; K_v
hardly matters. The base gives all three quantities the same period, and one of them at a time is
averaged more rarely. Where the scale has maps: the surface over K_u and K_v at the smaller base, too.
"""

from collections.abc import Sequence
import itertools
import math
import statistics
import sys

from experiments import command, plots
from experiments.report import above, Check, grouped, loss_table, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import Scale

QUANTITIES = {'params': 'K_x', 'mu': 'K_u', 'nu': 'K_v'}
MAP = 'map'
FACTORS = (1, 4, 16)  # Of the base period.


def runs(scale: Scale) -> list[Run]:
  """Returns a run for each base, quantity and factor, and seed; the bases themselves once."""
  single = [
    run
    for name, base in (('high frequency', scale.fast), ('low frequency', scale.slow))
    for quantity, factor in [('params', 1), *((q, f) for q in QUANTITIES for f in FACTORS[1:])]
    for run in scale.runs(
      {_variant(base, quantity, factor): _options(base, quantity, factor)},
      labels={'regime': name, 'quantity': quantity if factor > 1 else 'base', 'factor': factor},
    )
  ]
  if not scale.maps:
    return single
  base = scale.fast
  return single + [
    run
    for u, v in itertools.product(FACTORS[1:], repeat=2)
    for run in scale.runs(
      {
        f'K_u = {u * base}, K_v = {v * base}, K_x = {base}': {
          **_options(base, 'mu', u), 'periods.nu': v * base,
        }
      },
      labels={'regime': MAP, 'quantity': u, 'factor': v},
    )
  ]  # fmt: skip


def _variant(base: int, quantity: str, factor: int) -> str:
  return f'{QUANTITIES[quantity]} = {factor * base}, others {base}' if factor > 1 else f'all {base}'


def _options(base: int, quantity: str, factor: int) -> dict[str, int]:
  periods = {f'periods.{name}': base for name in QUANTITIES}
  return {'method': 'desloc', **periods, f'periods.{quantity}': factor * base}


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns how much the loss rises with each period."""
  regimes = grouped(results, 'regime')
  pairs = regimes.pop(MAP, [])
  figure, panels = plots.panels(
    2 + scale.maps, f'One period at a time: mean and deviation of {scale.seeds} seeds'
  )
  checks = []
  for panel, (name, group) in zip(panels, regimes.items(), strict=False):
    base = scale.fast if name == 'high frequency' else scale.slow
    _draw(panel, name, base, group, scale)
    checks += _checks(name, base, group, scale)
  if pairs:
    _draw_map(panels[-1], [*regimes['high frequency'], *pairs], scale)
  panels[0].set_ylabel(f'final {plots.LOSS}')
  notes = [
    f'Half-life of the first moment: {_half_life(scale):.1f} steps. In {scale.config.steps} steps a '
    'period beyond the run means never.'
  ]
  table = loss_table(grouped(results), 'periods')
  return Report('One period at a time', rows_of(results), table, checks, figure, notes)


def _half_life(scale: Scale) -> float:
  return math.log(0.5) / math.log(scale.config.inner.b1 or 0.95)


def _of(group: Sequence[Result], quantity: str | int, factor: int) -> list[Result]:
  wanted = (quantity, factor) if factor > 1 else ('base', 1)
  return [r for r in group if (r.run.labels['quantity'], r.run.labels['factor']) == wanted]


def _draw(panel, name: str, base: int, group: Sequence[Result], scale: Scale) -> None:
  periods = [base * factor for factor in FACTORS]
  for quantity, label in QUANTITIES.items():
    losses = [[r.loss for r in _of(group, quantity, factor)] for factor in FACTORS]
    plots.mean_line(panel, periods, losses, f'{label} alone')
  panel.axvline(_half_life(scale), color='gray', ls=':', label='half-life of the first moment')
  panel.set(
    xscale='log', xlabel='period (steps), the other two at the base', title=f'{name}: base {base}'
  )
  panel.set_xticks(periods, [str(period) for period in periods])
  panel.minorticks_off()
  panel.legend(fontsize='small')


def _draw_map(panel, group: Sequence[Result], scale: Scale) -> None:
  """Draws by how many percent the loss rises with K_u and K_v."""
  bases = _of(group, 'params', 1)
  rise = [[statistics.mean(above(_pair(group, u, v), bases)) for v in FACTORS] for u in FACTORS]
  periods = [scale.fast * factor for factor in FACTORS]
  plots.heat_map(panel, rise, periods, periods, 2)
  panel.set(xlabel='K_v', ylabel='K_u', title=f'loss above that of all {scale.fast}')


def _pair(group: Sequence[Result], u: int, v: int) -> list[Result]:
  """Returns the runs whose K_u and K_v are so many times the base; one alone is of the ablation."""
  if v == 1:
    return _of(group, 'mu', u)
  return _of(group, 'nu' if u == 1 else u, v)


def _checks(name: str, base: int, group: Sequence[Result], scale: Scale) -> list[Check]:
  bases = _of(group, 'params', 1)
  longest = FACTORS[-1]
  rise = {q: above(_of(group, q, longest), bases) for q in QUANTITIES}
  over_u = [x - u for x, u in zip(rise['params'], rise['mu'], strict=True)]
  over_v = [x - v for x, v in zip(rise['params'], rise['nu'], strict=True)]
  words = f'{name}, {longest}x base {base}:'
  return [
    Check(f'{words} the loss rises by more with K_x than with K_u (difference)', over_u, 0, unit='%'),
    Check(f'{words} and by more than with K_v (difference)', over_v, 0, unit='%'),
    Check(f'{words} K_v changes the loss by less than 1%', rise['nu'], -1, 1, '%', paper='hardly'),
  ]  # fmt: skip


if __name__ == '__main__':
  command.main(sys.modules[__name__])
