"""The comparison over sizes of the model: does DES-LOC keep up with Local Adam as models grow?

  python -m experiments.paper.scale

The paper compares 135M to 1.7B; perplexity of 135M is 8.96 for DES-LOC and Local Adam and 8.45 for
DDP. A line is fitted to how far it is above either over the logarithm of the size, for each seed.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import math
import sys

import numpy as np

from experiments import command, plots
from experiments.report import above, Check, grouped, Groups, loss_table, Report, rows_of
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
  checks += [
    Check(f"DES-LOC's distance to {name} grows by at most 1% of the loss with ten times the parameters",
          growth(sizes.values(), method), at_most=1, unit='%')
    for method, name in (('local_adam', 'Local Adam'), ('ddp', 'DDP'))
  ]  # fmt: skip
  table = loss_table(
    {f'{size}, {m}': group for size, groups in sizes.items() for m, group in groups.items()},
    'layers x width, method',
  )
  return Report('The comparison over sizes', rows_of(results), table, checks, figure)


def growth(sizes: Iterable[Groups], method: str) -> list[float]:
  """Returns the slope of a line through DES-LOC's percent above `method` over the tenfolds of
  parameters, seed by seed; infinite where a run diverged."""
  sizes = list(sizes)
  at = [math.log10(_parameters(groups[method])) for groups in sizes]
  distances = zip(*(above(groups['desloc'], groups[method]) for groups in sizes), strict=True)
  return [
    float(np.polyfit(at, each, 1)[0]) if np.isfinite(each).all() else math.inf for each in distances
  ]


def _parameters(group: Sequence[Result]) -> int:
  return max(result.summary.get('parameters') or 1 for result in group)


if __name__ == '__main__':
  command.main(sys.modules[__name__])
