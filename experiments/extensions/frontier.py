"""Loss against bytes, down to a ten-thousandth of DDP's: separate periods and compressed syncs at once.

  python -m experiments.extensions.frontier --processes=2

Variants have the learning rate that `experiments.extensions.finalists` chose for their method with plain
means. MuLoCo's (Muon inside, an outer Nesterov step, 2 bits) rates and period are the best of two dozen that
were tried on a seed or two of the sweep; nothing else is tuned for what it sends. The frontier is drawn through
what nothing betters at as few bytes. Beside it stands one worker alone, with its share of the data, which sends nothing.
"""

from collections.abc import Sequence
import math
import statistics
import sys
from typing import Any

from experiments import command, plots
from experiments.extensions import finalists, tuning
from experiments.report import above, Check, grouped, Groups, loss_table, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import Scale

DDP, ALONE = 'ddp', 'one worker alone'
CHECKED_RATIO, GOAL_PERCENT = 1000, 3
MARKERS = {'desloc': 's', 'Muon': '^', 'MuLoCo': '*'}  # Colors come twice.
_ALL = lambda operator: {'sync.params': operator, 'sync.moments': operator}
_TOPK = {'sync.params': 'topk', 'periods.mu': 0, 'periods.nu': 0}
_ALONE = {'workers': 1}
_MULOCO = {
  'method': 'muloco', 'sync.params': 'int2', 'inner.learning_rate': 0.0283,
  'outer.learning_rate': 1.0, 'outer.momentum': 0.5,
}  # fmt: skip


def variants(period: int) -> dict[str, tuple[str, dict[str, Any]]]:
  """Returns by name a method of `tuning` and what differs from it, where K_x is `period`."""
  often, few, seldom, muloco = period // 2, round(1.25 * period), 4 * period, 5 * period
  return {
    DDP: ('ddp', {}),
    'local_adam': ('local_adam', {}),
    'diloco': ('diloco', {}),
    'desloc': ('desloc', {}),
    'desloc int8': ('desloc', _ALL('int8')),
    'desloc int4': ('desloc', _ALL('int4')),
    f'desloc int4, K_x = {seldom}': ('desloc', {**_ALL('int4'), 'periods.params': seldom}),
    f'desloc topk, local moments, K_x = {few}': ('desloc', {**_TOPK, 'periods.params': few}),
    f'desloc topk, local moments, K_x = {often}': ('desloc', {**_TOPK, 'periods.params': often}),
    f'desloc topk, local moments, K_x = {seldom}': ('desloc', {**_TOPK, 'periods.params': seldom}),
    'Muon': ('DES-LOC-Muon', {}),
    'Muon int4': ('DES-LOC-Muon', _ALL('int4')),
    f'Muon int4, K_x = {seldom}': ('DES-LOC-Muon', {**_ALL('int4'), 'periods.params': seldom}),
    f'Muon topk, local moments, K_x = {few}': (
      'DES-LOC-Muon', {**_TOPK, 'periods.params': few},
    ),
    f'Muon topk, local moments, K_x = {often}': (
      'DES-LOC-Muon', {**_TOPK, 'periods.params': often},
    ),
    f'MuLoCo int2, K_x = {muloco}': ('Local Muon', {**_MULOCO, 'periods.params': muloco}),
    ALONE: ('desloc', _ALONE),
    f'{ALONE}, Muon': ('DES-LOC-Muon', _ALONE),
  }  # fmt: skip


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each variant and seed."""
  best = finalists.best(scale)
  return scale.runs(
    {
      name: {**tuning.settings(scale), **tuning.options_of(method), **best[method], **options}
      for name, (method, options) in variants(scale.config.periods.params).items()
    }
  )


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the losses, the frontier, and how far from DDP is what sends less than a 1,000th."""
  groups = grouped(results)
  ratios = {
    name: _ratio(group, groups[DDP])
    for name, group in groups.items()
    if not name.startswith(ALONE)  # It sends nothing.
  }
  figure, (panel,) = plots.panels(
    1, f'{tuning.settings(scale)["steps"]} steps: mean and standard deviation of {scale.seeds} seeds',
    10,
  )  # fmt: skip
  for name, group in groups.items():
    if name in ratios:
      look = {'marker': MARKERS.get(name.partition(' ')[0], 'o'), **plots.style(name)}
      plots.mean_line(panel, [ratios[name]], [[r.loss for r in group]], name, **look)
    else:
      panel.axhline(_mean(group), color='gray', lw=0.8, ls='--')
      panel.annotate(name, (1, _mean(group)), va='bottom', fontsize='small')
  edge = frontier(groups, ratios)
  panel.plot([ratios[n] for n in edge], [_mean(groups[n]) for n in edge], ':', color='gray')
  goal = _mean(groups[DDP]) * (1 + GOAL_PERCENT / 100)
  panel.axhline(goal, color='gray', lw=0.5)
  panel.annotate(f"DDP's loss + {GOAL_PERCENT}%", (1, goal), va='bottom', fontsize='small')
  panel.set(xlabel='times fewer bytes than DDP', ylabel=f'final {plots.LOSS}')
  plots.log_scale(panel)
  figure.legend(*panel.get_legend_handles_labels(), loc='outside right upper', fontsize='small')
  few = [name for name, ratio in ratios.items() if ratio >= CHECKED_RATIO]
  checks = [
    Check(
      f"{name}, {ratios[name]:,.0f}x fewer bytes: the loss is at most {GOAL_PERCENT}% above DDP's",
      above(groups[name], groups[DDP]),
      at_most=GOAL_PERCENT,
      unit='%',
    )
    for name in few
  ]
  notes = [f'On the frontier of what is sent: {", ".join(edge)}.']
  return Report(
    'Loss against bytes', rows_of(results), loss_table(groups, 'variant'), checks, figure, notes
  )


def frontier(groups: Groups, ratios: dict[str, float]) -> list[str]:
  """Returns what sends something and is not bettered at as few bytes, from the most bytes on."""
  edge, least = [], math.inf
  for name in sorted(ratios, key=lambda name: -ratios[name]):
    if (loss := _mean(groups[name])) < least:
      edge, least = [*edge, name], loss
  return edge[::-1]


def _mean(group: Sequence[Result]) -> float:
  return statistics.mean(result.loss for result in group)


def _ratio(group: Sequence[Result], ddp: Sequence[Result]) -> float:
  sent = lambda results: statistics.mean(r.summary['bytes_per_worker'] for r in results)
  return sent(ddp) / max(1, sent(group))


if __name__ == '__main__':
  command.main(sys.modules[__name__])
