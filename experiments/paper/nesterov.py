"""Averaging against an outer Nesterov step, both from a DDP warm start.

  python -m experiments.paper.nesterov

The paper at 700M and K_x = 32: Nesterov with an outer rate of 1.0 and a momentum of 0.9 is about
0.5% better than averaging and within 1% of DDP. All runs of a seed go on from one DDP checkpoint.

Where the scale has maps: outer momenta from .3 to .9 at three K_x, each beside averaging at that K_x.
"""

from collections.abc import Mapping, Sequence
import sys

from experiments import command, plots
from experiments.report import above, Check, grouped, Groups, loss_table, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import Options, Scale

OUTER = {'outer.learning_rate': 1.0, 'outer.momentum': 0.9}
VARIANTS = {
  'ddp': {'method': 'ddp'},
  'desloc': {'method': 'desloc'},
  'desloc_nesterov': {'method': 'desloc_nesterov', **OUTER},
  'outer rate 0.7': {'method': 'desloc_nesterov', **OUTER, 'outer.learning_rate': 0.7},
}
MOMENTA = (0.3, 0.5, 0.7, 0.9)
WARM_SHARE = 4  # Of the steps, one in so many is of DDP.


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each variant and seed, and before them the warm start of each seed."""
  found = _runs(scale, 2 * scale.fast, VARIANTS, '')
  if scale.maps:
    momenta = {_momentum(each): _nesterov(each) for each in MOMENTA}
    for period in _periods(scale):
      found += _runs(scale, period, {'desloc': VARIANTS['desloc'], **momenta}, f'K_x = {period}')
  return found


def _runs(scale: Scale, period: int, variants: Mapping[str, Options], place: str) -> list[Run]:
  shared = {'periods.params': period, 'restore.allow': 'method'}
  warm = {**shared, 'method': 'ddp', 'stop_at': scale.config.steps // WARM_SHARE}
  before = scale.runs({'warm start': warm}, keep_checkpoints=True)
  options = {name: {**shared, **each} for name, each in variants.items()}
  return scale.runs(options, after=before, labels={'map': place})


def _momentum(momentum: float) -> str:
  return f'momentum {momentum:g}'


def _nesterov(momentum: float) -> Options:
  return {'method': 'desloc_nesterov', **OUTER, 'outer.momentum': momentum}


def _periods(scale: Scale) -> list[int]:
  return [scale.fast, 2 * scale.fast, 4 * scale.fast]


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the comparison."""
  places = grouped(results, 'map')
  groups = grouped(places.pop(''))
  nesterov = groups['desloc_nesterov']
  warm = scale.config.steps // WARM_SHARE
  figure, (panel, *more) = plots.panels(
    1 + scale.maps, f'After {warm} steps of DDP, K_x = {2 * scale.fast}: mean and range of {scale.seeds} seeds', 9
  )  # fmt: skip
  plots.curves(panel, groups, first_step=warm)
  panel.axvline(warm, color='gray', ls=':')
  panel.set(xlabel='step', ylabel=plots.LOSS)
  panel.legend()
  checks = [
    Check('Nesterov is better than averaging', above(nesterov, groups['desloc']),
          at_most=0, unit='%', paper='-0.5%'),
    Check('Nesterov is at most 1% above DDP', above(nesterov, groups['ddp']),
          at_most=1, unit='%', paper='within 1%'),
  ]  # fmt: skip
  for place, group in places.items():
    _draw_map(more[0], place, grouped(group))
  notes = ['Bytes count the warm start too, in which all send as much as DDP.']
  table = loss_table(groups, 'after the warm start')
  return Report('Averaging and outer Nesterov', rows_of(results), table, checks, figure, notes)


def _draw_map(panel, place: str, groups: Groups) -> None:
  """Draws how far above averaging each outer momentum is."""
  percent = [above(groups[_momentum(each)], groups['desloc']) for each in MOMENTA]
  plots.mean_line(panel, MOMENTA, percent, place)
  panel.axhline(0, color='gray', lw=0.5)
  panel.set(xlabel='outer momentum, at a rate of 1', ylabel='loss above averaging (%)')
  panel.legend()


if __name__ == '__main__':
  command.main(sys.modules[__name__])
