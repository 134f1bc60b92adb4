"""Parts of plots that several experiments have: curves with the spread of seeds, points, panels."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from experiments.runs import Result

LOSS = 'validation loss (nats per token)'
MEGABYTES = 'payload sent by each worker (MB)'
# One look for each method in all plots.
STYLES = {
  'ddp': ('black', '-'),
  'local_adam': ('tab:orange', '--'),
  'desloc': ('tab:blue', '-'),
  'favg_opt': ('tab:green', ':'),
  'favg_reset': ('tab:red', '-.'),
  'diloco': ('tab:purple', '--'),
  'mt_dao': ('tab:brown', '-.'),
  'desloc_nesterov': ('tab:cyan', '-'),
  'local_sgd': ('tab:gray', ':'),
  'desloc stochastic': ('tab:olive', '--'),
  'desloc, no guard': ('tab:red', '-'),
}


_IN_A_ROW = 3
# Of what has no look of its own: not blue, which is DES-LOC's.
_COLORS = [
  f'tab:{c}' for c in ('orange', 'green', 'red', 'purple', 'brown', 'pink', 'olive', 'cyan')
]


def panels(count: int, title: str, width: float = 5.5, **options: Any) -> tuple[Figure, list[Axes]]:
  """Returns a figure with so many panels, three in a row at most."""
  rows = math.ceil(count / _IN_A_ROW)
  columns = math.ceil(count / rows)
  figure = Figure(figsize=(width * columns, 4.8 * rows), layout='constrained')
  axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
  for unused in axes[count:]:
    unused.remove()
  del axes[count:]
  for each in axes:
    each.grid(alpha=0.3)
    each.set_prop_cycle(color=_COLORS)
  figure.suptitle(title)
  return figure, axes


def style(name: str) -> dict[str, Any]:
  """Returns color and line style of a method, nothing for other names."""
  return dict(zip(('color', 'linestyle'), STYLES.get(name, ()), strict=False))


def curves(
  axes: Axes,
  groups: Mapping[str, Sequence[Result]],
  y: str = 'val_loss',
  x: str = 'step',
  x_scale: float = 1.0,
  first_step: int = 1,
) -> None:
  """Draws a metric of each group: the mean over seeds, and their range as a band."""
  for name, group in groups.items():
    lines = [
      [line for line in result.lines if y in line and line['step'] >= first_step]
      for result in group
    ]
    shortest = min(map(len, lines))  # One that diverged has fewer.
    values = np.array([[line[y] for line in each[:shortest]] for each in lines])
    at = [line[x] * x_scale for line in lines[0][:shortest]]
    (drawn,) = axes.plot(at, values.mean(axis=0), label=name, **style(name))
    axes.fill_between(
      at, values.min(axis=0), values.max(axis=0), color=drawn.get_color(), alpha=0.15
    )


def points(
  axes: Axes,
  groups: Mapping[str, Sequence[Result]],
  x: Callable[[Result], float],
  y: Callable[[Result], float] = lambda result: result.loss,
) -> None:
  """Draws a point a run, a color a group."""
  for name, group in groups.items():
    finite = [result for result in group if np.isfinite(y(result))]
    color = style(name).get('color')
    axes.plot(
      [x(r) for r in finite], [y(r) for r in finite], 'o', label=name, color=color, alpha=0.7
    )


def mean_line(
  axes: Axes, at: Sequence[float], values: Sequence[Sequence[float]], label: str, **options: Any
) -> None:
  """Draws the mean of values [points][seeds], with their standard deviation as error bars."""
  means = [np.mean(each) for each in values]
  spread = [np.std(each, ddof=1) if len(each) > 1 else 0.0 for each in values]
  axes.errorbar(at, means, spread, capsize=3, label=label, **{'marker': 'o', **options})


def heat_map(
  axes: Axes,
  percent: Sequence[Sequence[float]],
  rows: Sequence[object],
  columns: Sequence[object],
  digits: int = 1,
  **limits: float,
) -> None:
  """Draws percentages as colors and numbers; what is twice as high, or diverged, has the darkest.

  Args:
    axes: to draw on.
    percent: [rows][columns].
    rows: their names, from the top.
    columns: their names.
    digits: of a number behind its point.
    **limits: `vmin` and `vmax` of the colors.
  """
  shown = [[min(x, 100.0) if math.isfinite(x) else 100.0 for x in row] for row in percent]
  axes.imshow(shown, cmap='Reds', alpha=0.7, aspect='auto', **limits)
  axes.grid(visible=False)
  for i, row in enumerate(percent):
    for j, x in enumerate(row):
      text = f'{x:+.{digits}f}%' if math.isfinite(x) else 'diverged'
      axes.text(j, i, text, ha='center', va='center')
  axes.set_xticks(range(len(columns)), list(map(str, columns)))
  axes.set_yticks(range(len(rows)), list(map(str, rows)))


def log_scale(axes: Axes) -> None:
  """Makes the x axis logarithmic, with plain numbers at 1, 2, 5, 10, ..."""
  axes.set_xscale('log')
  axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:g}'))
  axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def bytes_of(result: Result) -> float:
  """Returns the megabytes that each worker has sent in a run."""
  return result.summary['bytes_per_worker'] / 1e6
