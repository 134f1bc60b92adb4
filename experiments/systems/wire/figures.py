"""Draws tokens/s against the rate of the links, measured and predicted."""

from collections.abc import Sequence
import pathlib

from matplotlib.figure import Figure

from experiments import plots
from experiments.systems.wire.compared import SILENT
from experiments.systems.wire.results import TimeRow


def plot(rows: Sequence[TimeRow], path: pathlib.Path) -> None:
  """Draws a panel for each number of processes; the dashed lines are the planner's."""
  counts = sorted({row.processes for row in rows})
  figure = Figure(figsize=(6.2 * len(counts), 4.8), layout='constrained')
  panels = figure.subplots(1, len(counts), squeeze=False)[0]
  for count, axes in zip(counts, panels, strict=True):
    here = [row for row in rows if row.processes == count and row.megabits is not None]
    for name in dict.fromkeys(row.method for row in here):
      line = [row for row in here if row.method == name]
      rates = [row.megabits for row in line]
      label = name if name in ('ddp', SILENT) else f'{name}, K_x = {line[0].K_x}'
      color, _ = plots.STYLES.get(name, ('tab:gray', ''))
      measured = [row.tokens_per_s for row in line]
      (drawn,) = axes.plot(rates, measured, 'o', color=color, label=label)
      predicted = [row.tokens_per_s * row.step_s / row.predicted_s for row in line]
      axes.plot(rates, predicted, '--', color=drawn.get_color(), linewidth=1)
    axes.set(
      xscale='log',
      yscale='log',
      xlabel='link of each process (Mbit/s)',
      ylabel='tokens/s of all processes',
      title=f'{count} processes; dashed: the planner',
    )
    axes.grid(alpha=0.3, which='both')
    axes.legend(fontsize='small')
  figure.savefig(path, dpi=120)
