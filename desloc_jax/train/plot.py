"""Draws training.png from a run's metrics.jsonl.

Redraw it at any time, also while the run goes on: python -m desloc_jax.train.plot runs/tiny
"""

import pathlib
import sys
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from desloc_jax.data.files import atomic_write
from desloc_jax.errors import UserError
from desloc_jax.paths import resolve
from desloc_jax.train.metrics import read_metrics
from desloc_jax.train.workdir import PLOT_FILE

matplotlib.use('Agg')
COLORS = {'params': 'tab:green', 'mu': 'tab:orange', 'nu': 'tab:red'}


def plot_training(workdir: pathlib.Path, title: str = '') -> pathlib.Path:
  """Draws loss against steps, with the syncs marked, and against bytes sent.

  Returns:
    The path of training.png in `workdir`.

  Raises:
    UserError: there are no metrics to draw.
  """
  lines = read_metrics(workdir)
  if not lines:
    raise UserError(f'{workdir} has no metrics.jsonl with at least one line to draw.')
  figure = Figure(figsize=(12, 4.5), layout='constrained')
  by_step, by_bytes = figure.subplots(1, 2)
  _draw_losses(by_step, lines, 'step')
  _mark_syncs(by_step, lines)
  by_step.set(xlabel='step', ylabel='loss (nats per token)')
  _draw_losses(by_bytes, lines, 'bytes_per_worker', scale=1e-6)
  by_bytes.set(xlabel='payload sent by each worker (MB)', ylabel='loss (nats per token)')
  for axes in (by_step, by_bytes):
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
  figure.suptitle(title or workdir.name)
  path = workdir / PLOT_FILE
  with atomic_write(path) as file:
    figure.savefig(file, dpi=120, format='png')
  return path


def _draw_losses(axes: Axes, lines: list[dict[str, Any]], x: str, scale: float = 1.0) -> None:
  labels = {
    'loss': ('mean training loss of the workers', dict(color='tab:blue', alpha=0.6, lw=1)),
    'val_loss': ('validation loss of the consensus', dict(color='black', marker='o', ms=4)),
  }
  for name, (label, style) in labels.items():
    points = [(line[x] * scale, line[name]) for line in lines if name in line]
    if points:
      axes.plot(*zip(*points, strict=True), label=label, **style)


def _mark_syncs(axes: Axes, lines: list[dict[str, Any]]) -> None:
  names = list(dict.fromkeys(name for line in lines for name in line.get('synced', ())))
  for row, name in enumerate(names):
    steps = [line['step'] for line in lines if name in line.get('synced', ())]
    # In a band of their own at the bottom, in axes coordinates.
    axes.plot(
      steps,
      [0.02 + 0.03 * row] * len(steps),
      '|',
      ms=7,
      color=COLORS.get(name),
      transform=axes.get_xaxis_transform(),
      label=f'{name} averaged',
    )


if __name__ == '__main__':
  if len(sys.argv) != 2 or sys.argv[1].startswith('-'):
    sys.exit(f'{__doc__ or ""}\nusage: python -m desloc_jax.train.plot WORKDIR')
  try:
    print(plot_training(resolve(sys.argv[1], 'WORKDIR')))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
