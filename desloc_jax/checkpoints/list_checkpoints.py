"""Lists the checkpoints of a run, whole or damaged; it only reads, also beside a run that goes on.

python -m desloc_jax checkpoints runs/tiny
"""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from desloc_jax import commands
from desloc_jax.checkpoints import checksums
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import format_bytes, read_metrics
from desloc_jax.logs.workdir import CHECKPOINTS, POSITION_FILE
from desloc_jax.paths import resolve
from desloc_jax.tables import align


def table(workdir: pathlib.Path) -> str:
  """Returns a row for each checkpoint under `workdir`, the newest first.

  Every file is read, as its checksum is compared.

  Raises:
    UserError: there is none.
  """
  folder = workdir / CHECKPOINTS
  found = folder.iterdir() if folder.is_dir() else ()
  # A save in progress, and one that was set aside, have other names.
  steps = sorted((int(path.name) for path in found if path.name.isdigit()), reverse=True)
  if not steps:
    raise UserError(f'{folder} has no checkpoint.')
  lines = {line['step']: line for line in read_metrics(workdir)}
  rows = [('step', 'validation loss', 'loss', 'size', 'method', 'workers', 'files')]
  return align([*rows, *(_row(folder / str(step), lines.get(step, {})) for step in steps)])


def _row(folder: pathlib.Path, line: dict[str, Any]) -> tuple[str, ...]:
  number = lambda name: f'{line[name]:.4f}' if name in line else '-'
  size = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
  try:
    config = json.loads((folder / POSITION_FILE).read_bytes())['config']
    method, workers = str(config['method']), str(config['workers'])
  except (OSError, ValueError, TypeError, KeyError):
    method, workers = '-', '-'
  damage = checksums.find_damage(folder)
  return (
    folder.name, number('val_loss'), number('loss'), format_bytes(size), method, workers,
    f'damaged: {damage}' if damage else 'whole',
  )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; a mistake ends in one line and exit code 2."""
  with commands.one_line_errors():
    parser = commands.make_parser('desloc_jax checkpoints', __doc__)
    parser.add_argument('run', nargs='?', metavar='RUN', help='its workdir')
    parser.add_argument('--workdir', metavar='RUN', help='the same')
    arguments = parser.parse_args(argv)
    if bool(arguments.run) == bool(arguments.workdir):
      raise UserError('expected the workdir of one run. See --help.')
    print(table(resolve(arguments.run or arguments.workdir, '--workdir')))
