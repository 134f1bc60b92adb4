"""What is to hold on a wire: checks of the tables that `python -m experiments.systems.wire` left."""

import collections
from collections.abc import Callable, Iterator, Sequence
import statistics

from experiments.report import Check
from experiments.systems.overhead import Turn
from experiments.systems.wire.compared import SILENT
from experiments.systems.wire.results import OverheadRow, TimeRow

PLANNED_WITHIN = 10  # Percent, of the measured step time.
LINK_USED = 90  # Percent of a link's rate.
OVERHEAD = 5  # Percent of a step without communication, where DDP takes SLOW_DDP times that step.
SLOW_DDP = 5
# Percent of a local step that syncs behind the steps may take, by Mbit/s and K_x.
HIDDEN_AT = {(100, 64): 1, (10, 256): 2}


def throttled(rows: Sequence[TimeRow]) -> list[TimeRow]:
  """Returns the rows of methods that communicate, over links of some rate."""
  return [row for row in rows if row.predicted_s is not None and row.method != SILENT]


def checks(
  time: Sequence[TimeRow], overhead: Sequence[OverheadRow], behind: Sequence[OverheadRow] = ()
) -> list[Check]:
  """Returns the checks of the tables, of any rows."""
  time = throttled(time)
  found = [*_planned(time), *_link_used(time)]
  for processes in sorted({row.processes for row in overhead}):
    found += _overhead([row for row in overhead if row.processes == processes])
  return [*found, *_hidden(behind)]


def _planned(time: Sequence[TimeRow]) -> Iterator[Check]:
  if time:
    yield Check(
      f"on throttled links the planner's step time is within {PLANNED_WITHIN}% of the measured, at "
      f'all {len(time)} points',
      [100 * (row.step_s / row.predicted_s - 1) for row in time],
      -PLANNED_WITHIN,
      PLANNED_WITHIN,
      '%',
      exact=True,
    )


def _link_used(time: Sequence[TimeRow]) -> Iterator[Check]:
  if used := [100 * row.link_used for row in time if row.link_used]:
    claim = (
      f'averages that take most of a step fill at least {LINK_USED}% of the link, headers included, at '
      f'all {len(used)} points'
    )
    yield Check(claim, used, at_least=LINK_USED, unit='%', exact=True)


def _overhead(turns: Sequence[OverheadRow]) -> Iterator[Check]:
  """Yields the checks of one number of processes."""
  setting = f'{turns[0].processes} processes, {turns[0].megabits:g} Mbit/s'
  if ddp := [row for row in turns if row.method == 'ddp']:
    claim = f'{setting}: DDP takes at least {SLOW_DDP} times as long as no communication'
    slower = _by_start(ddp, lambda turn: 1 + turn.overhead)
    yield Check(claim, slower, at_least=SLOW_DDP, unit='x')
  if desloc := [row for row in turns if row.method == 'desloc']:
    claim = (
      f'{setting}: DES-LOC at K_x = {desloc[0].K_x} takes at most {OVERHEAD}% longer than no '
      'communication'
    )
    longer = _by_start(desloc, lambda turn: 100 * turn.overhead)
    yield Check(claim, longer, at_most=OVERHEAD, unit='%')


def _hidden(turns: Sequence[OverheadRow]) -> Iterator[Check]:
  places = {(r.processes, r.megabits, r.K_x) for r in turns if r.method == 'desloc behind'}
  for processes, megabits, period in sorted(places):
    if most := HIDDEN_AT.get((megabits, period)):
      place = (processes, megabits, period, 'desloc behind')
      rows = [r for r in turns if (r.processes, r.megabits, r.K_x, r.method) == place]
      claim = (
        f'{processes} processes, {megabits:g} Mbit/s: with syncs behind the steps DES-LOC at K_x = '
        f'{period} takes at most {most}% longer than no communication'
      )
      yield Check(claim, [100 * row.as_turn.overhead for row in rows], at_most=most, unit='%')


def _by_start(rows: Sequence[OverheadRow], value: Callable[[Turn], float]) -> list[float]:
  """Returns the mean of each start: its turns have the processes, and their luck, in common."""
  starts = collections.defaultdict(list)
  for row in rows:
    starts[row.start].append(value(row.as_turn))
  return [statistics.mean(values) for values in starts.values()]
