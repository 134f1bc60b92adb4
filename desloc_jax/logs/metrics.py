"""Where a run's numbers go: metrics.jsonl, TensorBoard and the progress bar."""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
import time
from typing import Any

from absl import logging
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2
import tqdm

from desloc_jax.errors import UserError
from desloc_jax.files import naming
from desloc_jax.logs.workdir import METRICS_FILE, TENSORBOARD, write_text

_FLUSH_S = 30
# What differs between two lines of the same step and run.
MEASURED = (
  'seconds', 'tokens_per_s', 'local_step_ms', 'sync_step_ms', 'mfu', 'peak_memory_bytes'
)  # fmt: skip


class MetricsWriter:
  """Writes one JSON object a line to metrics.jsonl, and its numbers to TensorBoard.

  Attributes:
    lost: which lines an earlier run wrote that are not there any more, in words; '' for none.
  """

  def __init__(self, workdir: pathlib.Path, start_step: int):
    """Opens the files of `workdir`; lines after `start_step`, of an earlier run, are dropped."""
    self._path = workdir / METRICS_FILE
    lines = read_metrics(workdir)
    # A run that begins anew writes its step 0 too, and each restart what it changes.
    kept = [x for x in lines if 0 < start_step >= x['step'] and not _is_restart(x, start_step)]
    self.lost = lost_steps(kept, start_step)
    if start_step == 0 and (before := max((line['step'] for line in lines), default=0)):
      logging.warning(
        '%s begins anew: an earlier run came to step %d and left no checkpoint.', workdir, before
      )
    write_text(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
    self._file = self._path.open('a')
    self._tensorboard = _TensorBoard(workdir / TENSORBOARD, start_step + (start_step > 0))

  def write(self, line: Mapping[str, Any]) -> None:
    """Appends one line; `line['step']` is its step."""
    with naming(self._path):
      self._file.write(json.dumps(line) + '\n')
      self._file.flush()
    with naming(self._path.parent / TENSORBOARD):
      self._tensorboard.write(line)

  def close(self) -> None:
    with naming(self._path):
      self._file.close()
    with naming(self._path.parent / TENSORBOARD):
      self._tensorboard.close()


class _TensorBoard:
  """Writes numbers for TensorBoard.

  tensorboardX.SummaryWriter would leave that to a thread, which a full disk ends: the next calls
  then wait for it for ever.
  """

  def __init__(self, folder: pathlib.Path, purge_step: int):
    """Opens a file in `folder`; steps from `purge_step` on in earlier files are hidden."""
    folder.mkdir(parents=True, exist_ok=True)
    self._writer = event_file_writer.EventsWriter(str(folder / 'events'))
    self._flushed = time.monotonic()
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(purge_step, session_log=start)

  def write(self, line: Mapping[str, Any]) -> None:
    """Adds the numbers in a line; `line['step']` is its step."""
    for name, value in flat_numbers(line):
      if name != 'step':
        self._add(line['step'], summary=summary.scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_S:
      self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    self._writer.close()

  def _add(self, step: int, **content: Any) -> None:
    self._writer.write_event(event_pb2.Event(step=step, wall_time=time.time(), **content))


def lost_steps(lines: Sequence[Mapping[str, Any]], step: int) -> str:
  """Returns which of a run's first `step` steps have no line any more, '' if none is lost.

  Args:
    lines: up to `step`, after which there is a checkpoint; each checkpoint's step has a line.
    step: of the checkpoint.
  """
  last = max((line['step'] for line in lines if 'val_loss' in line or 'loss' in line), default=-1)
  if step == 0 or last >= step:
    return ''
  return f'metrics.jsonl has lost its lines of steps {last + 1} to {step}.'


def _is_restart(line: Mapping[str, Any], step: int) -> bool:
  return line['step'] == step and 'restored' in line and 'val_loss' not in line


def flat_numbers(line: Mapping[str, Any], prefix: str = ''):
  """Yields (dotted name, number) for the numbers in a line, those in nested objects too."""
  for name, value in line.items():
    if isinstance(value, Mapping):
      yield from flat_numbers(value, f'{prefix}{name}/')
    elif isinstance(value, int | float):
      yield prefix + name, value


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a run's metrics.jsonl; a last line cut off by a crash is left out.

  Raises:
    UserError: another line is not a JSON object with a whole number as `step`, or lacks what goes
      with a loss.
  """
  path = workdir / METRICS_FILE
  texts = path.read_bytes().splitlines() if path.exists() else []
  lines = []
  for number, text in enumerate(texts, start=1):
    try:
      line = json.loads(text)
      _check_line(line)
      lines.append(line)
    except (ValueError, RecursionError) as error:
      if number < len(texts) or not lines:
        raise UserError(f'{path}, line {number}, is not of a run: {error}.') from error
  return lines


def _check_line(line: Any) -> None:
  """Checks what the plot, the summary and a run that goes on count on."""
  if not isinstance(line, dict) or type(line.get('step')) is not int:
    raise ValueError('it is no object with a step')
  numbers = ['step']
  if 'loss' in line or 'val_loss' in line:
    numbers += ['tokens', 'bytes_per_worker', *(n for n in ('loss', 'val_loss') if n in line)]
  if 'loss' in line:
    numbers.append('tokens_per_s')
  for name in numbers:
    value = line.get(name)
    if type(value) not in (int, float) or not (abs(value) < 2**63 or math.isnan(value)):
      raise ValueError(f'{name} is {value!r:.60}')
  synced = line.get('synced', [])
  if not isinstance(synced, list) or not all(isinstance(name, str) for name in synced):
    raise ValueError(f'synced is {synced!r:.60}')


def progress_bar(start: int, stop: int, shown: bool = True, unit: str = 'step') -> tqdm.tqdm:
  """Returns a bar over steps, or other units; `tqdm` redraws it at most every half second.

  The variable TQDM_DISABLE=1 hides it as well.
  """
  hidden = {} if shown else {'disable': True}  # Any value of it would outdo the variable.
  return tqdm.tqdm(
    total=stop,
    initial=start,
    unit=unit,
    mininterval=0.5,
    dynamic_ncols=True,
    smoothing=0.1,
    **hidden,
  )


def format_bytes(size: float) -> str:
  """Returns a size in decimal units: '1.23 MB'."""
  for unit in ('B', 'kB', 'MB', 'GB', 'TB'):
    if abs(size) < 1000:
      return f'{size:.0f} B' if unit == 'B' else f'{size:.2f} {unit}'
    size /= 1000
  return f'{size:.2f} PB'
