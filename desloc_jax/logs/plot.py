"""Draws training.png from a run's metrics.jsonl.

Redraw it at any time, also while the run goes on:

  python -m desloc_jax plot runs/tiny
"""

from collections.abc import Sequence
import contextlib
import os
import pathlib
import sys
from typing import Any, TYPE_CHECKING

from absl import logging

from desloc_jax import commands
from desloc_jax.errors import UserError
from desloc_jax.files import atomic_write
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.logs.workdir import PLOT_FILE
from desloc_jax.paths import resolve

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

COLORS = {'params': 'tab:green', 'mu': 'tab:orange', 'nu': 'tab:red'}


def plot_or_tell(workdir: pathlib.Path, title: str = '') -> None:
  """Does what `plot_training` does; what keeps it from that is told in a line, and nothing else."""
  try:
    plot_training(workdir, title)
  except Exception as error:  # No matplotlib, one that is broken, a font, a full disk.
    logging.warning(
      '%s was not drawn: %s. All else is done; python -m desloc_jax plot %s draws it.',
      PLOT_FILE, _first_line(error), workdir,
    )  # fmt: skip


def plot_training(workdir: pathlib.Path, title: str = '') -> pathlib.Path:
  """Draws loss against steps, bytes sent and seconds, and how far workers have drifted apart.

  Steps show each worker's loss and mark the syncs. Seconds are those of all starts of the run, with
  compiling. Drift is the distance of the workers from their mean, over the mean's norm, at syncs.

  Returns:
    The path of training.png in `workdir`.

  Raises:
    UserError: there are no metrics to draw.
  """
  lines = read_metrics(workdir)
  if not lines:
    raise UserError(f'{workdir} has no metrics.jsonl with at least one line to draw.')
  figure = _figure(figsize=(12, 8), layout='constrained')
  (by_step, by_bytes), (by_seconds, drift) = figure.subplots(2, 2)
  _draw_workers(by_step, lines)
  _draw_losses(by_step, lines, 'step')
  _mark_syncs(by_step, lines)
  _draw_losses(by_bytes, lines, 'bytes_per_worker', scale=1e-6)
  _draw_losses(by_seconds, _with_all_seconds(lines), 'seconds')
  _draw_drift(drift, lines)
  for axes, xlabel, ylabel in (
    (by_step, 'step', 'loss (nats per token)'),
    (by_bytes, 'payload sent by each worker (MB)', 'loss (nats per token)'),
    (by_seconds, 'seconds', 'loss (nats per token)'),
    (drift, 'step', 'drift of the workers at a sync'),
  ):
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    if axes.has_data():
      axes.legend(fontsize='small')
    else:  # DDP has no drift; a run of older versions no seconds.
      axes.remove()
  figure.suptitle(title or workdir.name)
  path = workdir / PLOT_FILE
  with atomic_write(path) as file:
    figure.savefig(file, dpi=120, format='png')
  return path


def _figure(**options: Any) -> 'Figure':
  """Returns a figure, which is drawn to a file in the same way with any backend.

  Of the backend only the name is checked, as matplotlib is imported: one that the environment names
  for another Python, such as a notebook's, is left out.
  """
  backend = None if 'matplotlib' in sys.modules else os.environ.pop('MPLBACKEND', None)
  try:
    import matplotlib  # Half a second.
    from matplotlib.figure import Figure
  finally:
    if backend is not None:
      os.environ['MPLBACKEND'] = backend
  if backend:
    with contextlib.suppress(ValueError):
      matplotlib.rcParams['backend'] = backend
  return Figure(**options)


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:200].rstrip('.')


def _draw_losses(axes: 'Axes', lines: list[dict[str, Any]], x: str, scale: float = 1.0) -> None:
  labels = {
    'loss': ('mean training loss of the workers', dict(color='tab:blue', alpha=0.6, lw=1)),
    'val_loss': ('validation loss of the consensus', dict(color='black', marker='o', ms=4)),
  }
  for name, (label, style) in labels.items():
    points = [(line[x] * scale, line[name]) for line in lines if {x, name} <= line.keys()]
    if points:
      axes.plot(*zip(*points, strict=True), label=label, **style)


def _draw_workers(axes: 'Axes', lines: list[dict[str, Any]]) -> None:
  """Draws each worker's loss, behind the others; a restart may change how many they are."""
  lines = [line for line in lines if len(line.get('losses', ())) > 1]
  for worker in range(max((len(line['losses']) for line in lines), default=0)):
    points = [(x['step'], x['losses'][worker]) for x in lines if worker < len(x['losses'])]
    label = None if worker else 'training loss of each worker'
    axes.plot(*zip(*points, strict=True), label=label, color='tab:blue', alpha=0.35, lw=0.5)


def _with_all_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the lines with a time, which begins anew at each start, since the first start."""
  timed, before, last = [], 0.0, 0.0
  for line in lines:
    if 'seconds' in line:
      before += last if line['seconds'] < last else 0.0
      last = line['seconds']
      timed.append(line | {'seconds': before + last})
  return timed


def _draw_drift(axes: 'Axes', lines: list[dict[str, Any]]) -> None:
  for name in dict.fromkeys(name for line in lines for name in line.get('drift', ())):
    points = [(x['step'], x['drift'][name]) for x in lines if name in x.get('drift', ())]
    axes.semilogy(*zip(*points, strict=True), marker='.', lw=1, color=COLORS.get(name), label=name)


def _mark_syncs(axes: 'Axes', lines: list[dict[str, Any]]) -> None:
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


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; what keeps the plot from being drawn ends in one line and exit code 2."""
  with commands.one_line_errors():
    parser = commands.make_parser('desloc_jax plot', __doc__)
    parser.add_argument('workdir', help='of the run')
    workdir = resolve(parser.parse_args(argv).workdir, 'WORKDIR')
    try:
      print(plot_training(workdir))
    except (OSError, UserError):
      raise
    except Exception as error:  # As in `plot_or_tell`.
      raise UserError(_first_line(error)) from error


if __name__ == '__main__':
  main()
