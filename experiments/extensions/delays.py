"""Loss against delay: what it costs that an average lands some steps after it was sent.

  python -m experiments.extensions.delays --seeds=3

At the K_x of the low-frequency regime: all three quantities delayed, or the parameters where they
alone are averaged, up to half of K_x. What a worker did since it sent is kept; `overwrite` throws it
away. `sync.behind` has the bits of these runs, whatever the network: here all workers are in one process.
"""

from collections.abc import Mapping, Sequence
import sys

from experiments import command, plots
from experiments.report import above, Check, grouped, loss_table, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import Scale

DELAYS = (0, 1, 4, 16)  # And half of K_x.
# What is averaged, and what becomes of the steps since it was sent.
SERIES = {
  'all three': {'method': 'desloc'},
  'parameters alone': {'method': 'favg_opt'},
  'all three, overwrite': {'method': 'desloc', 'sync.land': 'overwrite'},
}
GOAL = 1  # Percent above no delay.


def delays(period: int) -> list[int]:
  """Returns the delays that are tried, in steps."""
  return sorted({delay for delay in (*DELAYS, period // 2) if delay <= period // 2})


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each series, delay and seed; with no delay nothing can be overwritten."""
  return [
    run
    for series, options in SERIES.items()
    for delay in delays(scale.slow)
    if delay or 'sync.land' not in options
    for run in scale.runs(
      {f'{series}, delay {delay}': _options(options, delay, scale.slow)},
      labels={'series': series, 'delay': delay},
    )
  ]


def _options(options: Mapping[str, object], delay: int, period: int) -> dict[str, object]:
  return {**options, 'periods.params': period, 'sync.delay': delay}


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns by how much the loss rises with the delay."""
  series = grouped(results, 'series')
  checks = [
    Check(
      f'{name}: at a delay of {delay} the loss is at most {GOAL}% above that without delay',
      above(_of(group, delay), _undelayed(series, name)), at_most=GOAL, unit='%',
    )
    for name, group in series.items()
    for delay in delays(scale.slow)
    if delay
  ]  # fmt: skip
  figure, (panel,) = plots.panels(
    1, f'K_x = {scale.slow}, {scale.config.workers} workers: mean and deviation of {scale.seeds} seeds', 8
  )  # fmt: skip
  for name, group in series.items():
    steps = sorted({result.run.labels['delay'] for result in group})
    losses = [[result.loss for result in _of(group, delay)] for delay in steps]
    plots.mean_line(panel, steps, losses, name)
  panel.set(xscale='symlog', xlabel='delay (steps)', ylabel=f'final {plots.LOSS}')
  panel.set_xticks(delays(scale.slow), map(str, delays(scale.slow)))
  panel.legend()
  table = loss_table(grouped(results), 'what lands later')
  return Report('Loss against delay', rows_of(results), table, checks, figure)


def _of(group: Sequence[Result], delay: int) -> list[Result]:
  return [result for result in group if result.run.labels['delay'] == delay]


def _undelayed(series: Mapping[str, Sequence[Result]], name: str) -> list[Result]:
  return _of(series[name], 0) or _of(series['all three'], 0)


if __name__ == '__main__':
  command.main(sys.modules[__name__])
