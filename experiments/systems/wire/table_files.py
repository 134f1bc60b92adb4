"""The tables as files, in which other numbers of processes keep their rows."""

from collections.abc import Sequence
import csv
import dataclasses
import pathlib
from typing import Any

from desloc_jax.errors import UserError
from desloc_jax.logs.workdir import write_text
from experiments.report import csv_text
from experiments.systems.wire.link_use import LinkRow
from experiments.systems.wire.results import BytesRow, OverheadRow, TimeRow

RESULTS = pathlib.Path(__file__).parents[2] / 'results'
Row = BytesRow | TimeRow | OverheadRow | LinkRow
KINDS = {
  'bytes': BytesRow,
  'time': TimeRow,
  'overhead': OverheadRow,
  'behind': OverheadRow,
  'link': LinkRow,
}
# What tells rows apart of which some are measured without the others.
_BEHIND = ('processes', 'method', 'K_x', 'megabits')
_PLACES = {'bytes': ('processes', 'method'), 'behind': _BEHIND, 'link': _BEHIND}


def read(part: str, folder: pathlib.Path = RESULTS) -> list[Row]:
  """Returns the rows of a table, none where there is no file.

  Raises:
    UserError: the file is not such a table.
  """
  path = _path(part, folder)
  if not path.exists():
    return []
  fields = dataclasses.fields(KINDS[part])
  with path.open(newline='') as file:
    try:
      return [
        KINDS[part](*(_value(field.type, row[field.name]) for field in fields))
        for row in csv.DictReader(file)
      ]
    except (KeyError, TypeError, ValueError) as error:
      names = ', '.join(field.name for field in fields)
      raise UserError(
        f'{path} is not a table of {part} ({error}); expected the columns {names}.'
      ) from error


def update(part: str, rows: Sequence[Row], folder: pathlib.Path = RESULTS) -> list[Row]:
  """Writes rows in the place of earlier ones; returns all of the table.

  Those are of as many processes, as times are compared within a table; of bytes of the same method
  too, and of syncs behind the steps of the same K_x and rate.
  """
  place = lambda row: tuple(getattr(row, name) for name in _PLACES.get(part, ('processes',)))
  places = set(map(place, rows))
  kept = [row for row in read(part, folder) if place(row) not in places]
  whole = sorted([*kept, *rows], key=lambda row: row.processes)
  write_text(_path(part, folder), csv_text(list(map(dataclasses.asdict, whole))))
  return whole


def _path(part: str, folder: pathlib.Path) -> pathlib.Path:
  return folder / f'wire_{part}.csv'


def _value(kind: Any, text: str | None) -> Any:
  if text is None:
    raise ValueError('a row is cut short')
  if kind is str:
    return text
  if kind is int:
    return int(text)
  return float(text) if text or kind is float else None
