"""The comparison over sizes of the model: does DES-LOC keep up with Local Adam as models grow?

  python -m experiments.paper.scale

The paper compares 135M to 1.7B; perplexity of 135M is 8.96 for DES-LOC and Local Adam and 8.45 for
DDP.
"""

from collections.abc import Sequence
import dataclasses
import sys

from experiments import command, plots
from experiments.report import above, Check, grouped, loss_table, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import changed, Scale

METHODS = ('ddp', 'local_adam', 'desloc')


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each size, method and seed, the small ones first."""
  return [
    run
    for size, options in scale.sizes.items()
    for run in dataclasses.replace(scale, config=changed(scale.config, options)).runs(
      {method: {'method': method} for method in METHODS}, labels={'size': size}
    )
  ]


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the losses by size."""
  sizes = {size: grouped(group) for size, group in grouped(results, 'size').items()}
  figure, (panel,) = plots.panels(
    1, f'K_x = {scale.config.periods.params}: mean and deviation of {scale.seeds} seeds', 8
  )
  for method in METHODS:
    plots.mean_line(
      panel,
      [_parameters(groups[method]) for groups in sizes.values()],
      [[result.loss for result in groups[method]] for groups in sizes.values()],
      method,
      **plots.style(method),
    )
  panel.set(xlabel='parameters', ylabel=f'final {plots.LOSS}')
  plots.log_scale(panel)
  panel.legend()
  checks = [
    check
    for size, groups in sizes.items()
    for check in (
      Check(f"{size}: DES-LOC's loss is at most 1% above Local Adam's",
            above(groups['desloc'], groups['local_adam']), at_most=1, unit='%', paper='0% at 135M'),
      Check(f"{size}: DES-LOC's loss is at most 3% above DDP's",
            above(groups['desloc'], groups['ddp']), at_most=3, unit='%', paper='2.7% at 135M'),
    )
  ]  # fmt: skip
  table = loss_table(
    {f'{size}, {m}': group for size, groups in sizes.items() for m, group in groups.items()},
    'layers x width, method',
  )
  return Report('The comparison over sizes', rows_of(results), table, checks, figure)


def _parameters(group: Sequence[Result]) -> int:
  return max(result.summary.get('parameters') or 1 for result in group)


if __name__ == '__main__':
  command.main(sys.modules[__name__])
