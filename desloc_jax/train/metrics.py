"""Where a run's numbers go: metrics.jsonl, TensorBoard and the progress bar."""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

import tensorboardX
import tqdm

METRICS_FILE = 'metrics.jsonl'


class MetricsWriter:
  """Writes one JSON object a line to metrics.jsonl, and its numbers to TensorBoard."""

  def __init__(self, workdir: pathlib.Path, start_step: int):
    """Opens the files of `workdir`; lines after `start_step`, of an earlier run, are dropped."""
    self._path = workdir / METRICS_FILE
    kept = [line for line in read_metrics(workdir) if line['step'] <= start_step]
    write_atomically(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
    self._file = self._path.open('a')
    self._tensorboard = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=start_step + 1 if kept else None
    )

  def write(self, line: Mapping[str, Any]) -> None:
    """Appends one line; `line['step']` is its step."""
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    for name, value in flat_numbers(line):
      if name != 'step':
        self._tensorboard.add_scalar(name, value, line['step'])

  def close(self) -> None:
    self._file.close()
    self._tensorboard.close()


def flat_numbers(line: Mapping[str, Any], prefix: str = ''):
  """Yields (dotted name, number) for the numbers in a line, those in nested objects too."""
  for name, value in line.items():
    if isinstance(value, Mapping):
      yield from flat_numbers(value, f'{prefix}{name}/')
    elif isinstance(value, int | float):
      yield prefix + name, value


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a run's metrics.jsonl; a last line cut off by a crash is left out."""
  path = workdir / METRICS_FILE
  lines = []
  if path.exists():
    for text in path.read_text().splitlines():
      try:
        lines.append(json.loads(text))
      except ValueError:
        break
  return lines


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file that a crash leaves either as it was or complete."""
  partial = path.with_name(path.name + '.partial')
  with partial.open('w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  partial.replace(path)


def progress_bar(start: int, stop: int) -> tqdm.tqdm:
  """Returns a bar over steps; `tqdm` redraws it at most every half second."""
  return tqdm.tqdm(
    total=stop, initial=start, unit='step', mininterval=0.5, dynamic_ncols=True, smoothing=0.1
  )


def format_bytes(size: float) -> str:
  """Returns a size in decimal units: '1.23 MB'."""
  for unit in ('B', 'kB', 'MB', 'GB', 'TB'):
    if abs(size) < 1000:
      return f'{size:.0f} B' if unit == 'B' else f'{size:.2f} {unit}'
    size /= 1000
  return f'{size:.2f} PB'
