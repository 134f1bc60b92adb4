"""What is to hold on a wire: checks of the tables that `python -m experiments.wire` left."""

from collections.abc import Iterator, Mapping, Sequence
import csv
import pathlib
from typing import Any

from experiments.overhead import Turn
from experiments.report import Check
from experiments.wire.methods import SILENT

RESULTS = pathlib.Path(__file__).parents[1] / 'results'
PLANNED_WITHIN = 10  # Percent, of the measured step time.
LINK_USED = 90  # Percent of a link's rate.
OVERHEAD = 5  # Percent of a step without communication, where DDP takes SLOW_DDP times that step.
SLOW_DDP = 5
Rows = Sequence[Mapping[str, Any]]


def read_time(folder: pathlib.Path = RESULTS) -> Rows:
  """Returns the measured steps of methods that communicate over links of some rate.

  Cells are floats, '' where empty; no rows where there is no such file yet.
  """
  rows = _read(folder / 'wire_time.csv')
  return [row for row in rows if row['predicted_s'] and row['method'] != SILENT]


def read_overhead(folder: pathlib.Path = RESULTS) -> Rows:
  """Returns the turns of DES-LOC and of no communication."""
  return _read(folder / 'wire_overhead.csv')


def _read(path: pathlib.Path) -> Rows:
  if not path.exists():
    return []
  with path.open(newline='') as file:
    rows = list(csv.DictReader(file))
  number = lambda column, cell: float(cell) if cell and column != 'method' else cell
  return [{column: number(column, cell) for column, cell in row.items()} for row in rows]


def checks(time: Rows, overhead: Rows) -> list[Check]:
  """Returns the checks of rows as `read_time` and `read_overhead` return them."""
  found = [*_planned(time), *_link_used(time)]
  for processes in sorted({row['processes'] for row in overhead}):
    turns = [row for row in overhead if row['processes'] == processes]
    found += _overhead(time, turns)
  return found


def _planned(time: Rows) -> Iterator[Check]:
  if time:
    yield Check(
      f"on throttled links the planner's step time is within {PLANNED_WITHIN}% of the measured, at "
      f'all {len(time)} points',
      [100 * (row['step_s'] / row['predicted_s'] - 1) for row in time],
      -PLANNED_WITHIN,
      PLANNED_WITHIN,
      '%',
      exact=True,
    )


def _link_used(time: Rows) -> Iterator[Check]:
  if used := [100 * row['link_used'] for row in time if row['link_used']]:
    claim = (
      f'averages that take most of a step fill at least {LINK_USED}% of the link, headers included, at '
      f'all {len(used)} points'
    )
    yield Check(claim, used, at_least=LINK_USED, unit='%', exact=True)


def _overhead(time: Rows, turns: Rows) -> Iterator[Check]:
  """Yields the checks of one number of processes."""
  at = lambda row: (row['processes'], row['megabits'])
  first = turns[0]
  ddp = [row['over_silent'] for row in time if row['method'] == 'ddp' and at(row) == at(first)]
  setting = f'{first["processes"]:.0f} processes, {first["megabits"]:g} Mbit/s'
  if ddp:
    claim = f'{setting}: DDP takes at least {SLOW_DDP} times as long as no communication'
    yield Check(claim, ddp, at_least=SLOW_DDP, unit='x', exact=True)
  yield Check(
    f'{setting}: DES-LOC at K_x = {first["K_x"]:.0f} takes at most {OVERHEAD}% longer than no communication',
    [100 * Turn(row['step_s'], row['silent_step_s']).overhead for row in turns],
    at_most=OVERHEAD,
    unit='%',
  )
