"""What averaging costs, measured in turns with steps that send nothing."""

import csv
import re

import pytest

from desloc_jax.errors import UserError
from experiments.overhead import CYCLE, mean_overhead, parse, Turn
from tests.experiment_runs import command, SMALL

TINY = '--config=configs/tiny.py'


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--cycles=0'], '--cycles is 0; expected at least 1'),
    (['--config.periods.params=0'], 'periods.params is 0; expected at least 1'),
    (['--csv=nowhere/turns.csv'], '--csv is nowhere/turns.csv; its folder does not exist'),
    (['--config.perids.params=3'], "Did you mean 'periods.params'"),
    (['--nope'], '--nope is unknown'),
  ],
)
def test_what_cannot_be_measured_is_refused(args, message):
  with pytest.raises(UserError, match=message):
    parse([TINY, *args])


def test_the_run_is_as_long_as_its_turns():
  _, config = parse([TINY, '--cycles=2', '--config.periods.params=8'])
  assert config.steps == (2 * CYCLE + 1) * 8


def test_a_turn_is_shown_beside_its_silent_steps():
  assert Turn(0.0103, 0.01).cells() == ('10.3 ms', '10.0 ms', '+3.0%')
  assert mean_overhead([Turn(0.0103, 0.01), Turn(0.0208, 0.02)]).startswith('3.5% (n = 2, 95% CI')


@pytest.mark.slow
def test_each_turn_is_a_row(tmp_path):
  path = tmp_path / 'turns.csv'
  process = command(
    'overhead', TINY, '--cycles=2', f'--csv={path}', '--config.periods.params=4',
    *(f'--config.{option}' for option in SMALL),
  )  # fmt: skip
  output, errors = process.communicate()
  assert process.returncode == 0, errors
  table, mean = output.strip().split('\n\n')
  assert len(table.splitlines()) == 2 + 2 * CYCLE
  assert re.fullmatch(r'longer than without communication by \S+% \(n = 12, 95% CI .*\)', mean)
  rows = list(csv.DictReader(path.open()))
  assert [set(row) for row in rows] == [{'step_s', 'silent_step_s'}] * 2 * CYCLE
  assert all(0 < float(seconds) < 10 for row in rows for seconds in row.values())
