"""Averaging against an outer Nesterov step, both from a DDP warm start.

  python -m experiments.paper.nesterov

The paper at 700M and K_x = 32: Nesterov with an outer rate of 1.0 and a momentum of 0.9 is about
0.5% better than averaging and within 1% of DDP. All runs of a seed go on from one DDP checkpoint.
"""

from collections.abc import Sequence
import sys

from experiments import command, plots
from experiments.report import above, Check, grouped, loss_table, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import Scale

OUTER = {'outer.learning_rate': 1.0, 'outer.momentum': 0.9}
VARIANTS = {
  'ddp': {'method': 'ddp'},
  'desloc': {'method': 'desloc'},
  'desloc_nesterov': {'method': 'desloc_nesterov', **OUTER},
  'outer rate 0.7': {'method': 'desloc_nesterov', **OUTER, 'outer.learning_rate': 0.7},
}
WARM_SHARE = 4  # Of the steps, one in so many is of DDP.


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each variant and seed, and before them the warm start of each seed."""
  shared = {'periods.params': 2 * scale.fast, 'restore.allow': 'method'}
  warm = {**shared, 'method': 'ddp', 'stop_at': scale.config.steps // WARM_SHARE}
  before = scale.runs({'warm start': warm}, keep_checkpoints=True)
  return scale.runs({name: {**shared, **each} for name, each in VARIANTS.items()}, after=before)


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the comparison."""
  groups = grouped(results)
  nesterov = groups['desloc_nesterov']
  warm = scale.config.steps // WARM_SHARE
  figure, (panel,) = plots.panels(
    1, f'After {warm} steps of DDP, K_x = {2 * scale.fast}: mean and range of {scale.seeds} seeds', 9
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
  notes = ['Bytes count the warm start too, in which all send as much as DDP.']
  table = loss_table(groups, 'after the warm start')
  return Report('Averaging and outer Nesterov', rows_of(results), table, checks, figure, notes)


if __name__ == '__main__':
  command.main(sys.modules[__name__])
