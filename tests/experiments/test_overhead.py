"""What averaging costs, measured beside the local steps of the same run."""

import csv
import re
import time
import types

import numpy as np
import pytest

from configs import tiny
from desloc_jax.errors import UserError
from desloc_jax.hosts.peers import peers
from experiments.scales import changed
from experiments.several import free_port
from experiments.systems.overhead import (
  CYCLE,
  cycle_of,
  free_step,
  mean_overhead,
  never_due,
  parse,
  STRETCH,
  take_turn,
  Turn,
  turn_of,
)
from tests.experiment_runs import command, SMALL

TINY = '--config=configs/tiny.py'


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--cycles=0'], '--cycles is 0; expected a whole number >= 1'),
    (['--config.periods.params=0'], 'periods.params is 0; expected at least 1'),
    (['--config.periods.params=-1'], 'periods.params is -1; expected at least 1'),
    (['--config.periods.nu=20'], 'periods.nu is 20; expected a multiple of periods.params, 16'),
    (['--config.stochastic=True'], 'stochastic is True; expected False'),
    (['--csv=nowhere/turns.csv'], '--csv is nowhere/turns.csv; its folder does not exist'),
    (['--config.perids.params=3'], "Did you mean 'periods.params'"),
    (['--nope'], '--nope is unknown'),
  ],
)
def test_what_cannot_be_measured_is_refused(args, message):
  with pytest.raises(UserError, match=message):
    parse([TINY, *args])


def test_the_run_is_as_long_as_its_turns():
  _, config = parse([TINY, '--cycles=20', '--config.periods.params=8'])
  assert config.steps == (20 * 6 + 2 + 3) * 8  # Two turns until STRETCH steps are made.
  _, config = parse([TINY, '--cycles=1', '--config.periods.params=8'])
  assert config.steps == tiny.get_config().steps  # Long enough.
  _, config = parse([TINY, '--cycles=200', '--config.method=ddp', '--config.periods.params=0'])
  assert config.steps == (200 * 2 + 1 + 3) * STRETCH  # Whatever K_x is, DDP averages at each step.


@pytest.mark.parametrize(
  ('periods', 'steps', 'turns'),
  [
    ({}, 8, 6),
    ({'mu': 8}, 8, 6),
    ({'nu': 32}, 8, 12),
    ({'mu': 0, 'nu': 40}, 8, 30),
    ({'params': 1, 'nu': 7}, STRETCH, 14),
  ],
)
def test_a_cycle_has_all_averages_equally_often_each_at_the_end_of_a_turn(periods, steps, turns):
  options = {f'periods.{name}': value for name, value in periods.items()}
  config = changed(tiny.get_config(), {'periods.params': 8, **options})
  assert (turn_of(config), cycle_of(config)) == (steps, turns)
  ddp = changed(config, {'method': 'ddp'})
  assert (turn_of(ddp), cycle_of(ddp)) == (STRETCH, 2)  # 30 steps.


def test_averages_of_the_steps_beside_ddp_never_come_due():
  config = changed(tiny.get_config(), {'method': 'ddp', 'steps': 50, 'periods.nu': 7})
  local = never_due(config)
  assert local.method == 'desloc'
  assert {period for period in local.periods.values() if period} == {51}
  # Not the program without averages, which XLA makes another one of.
  assert never_due(changed(config, {'periods.params': 0})).periods.params == 51
  # What is never averaged anyway still is not.
  assert never_due(changed(config, {'periods.mu': 0})).periods.mu == 0
  assert never_due(changed(config, {'method': 'local_adam'})).method == 'local_adam'


class Timed:
  """In a run's place: a step takes as many seconds as it says, an average more."""

  def __init__(self, clock, step_s, average_s=0):
    self.clock, self.step_s, self.average_s, self.steps = clock, step_s, average_s, []

  def advance(self, steps):
    self.steps.append(steps)
    self.clock.now += self.step_s * steps + (self.average_s if steps == 1 else 0)


@pytest.fixture
def clock(monkeypatch):
  clock = types.SimpleNamespace(now=0.0)
  monkeypatch.setattr(time, 'perf_counter', lambda: clock.now)
  return clock


def test_a_turn_is_the_local_steps_and_the_average(clock, monkeypatch):
  def wait():
    clock.now += 100  # Is none of the steps' time.

  monkeypatch.setattr(peers(), 'wait_for_all', wait)
  training = Timed(clock, 2, average_s=78)
  assert take_turn(training, training, 40) == Turn(step_s=3.95, waiting_s=0, local_step_s=2)
  assert training.steps == [15, 15, 9, 1]


def test_beside_a_method_without_local_steps_are_those_of_another(clock):
  training, local = Timed(clock, 83), Timed(clock, 2)
  assert take_turn(training, local, 20) == Turn(step_s=83, waiting_s=None, local_step_s=2)
  assert training.steps == local.steps == [15, 5]


def test_the_average_waits_for_the_slowest_process_and_local_steps_for_none(clock, monkeypatch):
  def with_a_slower_one(parts):
    return [parts, [[2 * seconds for seconds in part] for part in parts]]

  monkeypatch.setattr(peers(), 'gather', with_a_slower_one)
  training = Timed(clock, 1)
  turn = take_turn(training, training, 32)
  assert (turn.step_s, turn.waiting_s) == (2, 0.5 * 31 / 32)
  assert turn.local_step_s == 1.5


def test_local_steps_count_until_the_first_process_leaves_its_core_to_another():
  # Of two on one core, one is done with 45 steps at 90 s; the other, which had made 30 by then (3 s
  # a step), makes its last 15 alone in half of the time.
  assert free_step(np.array([[30, 60, 90], [45, 90, 112.5]]), 45) == (2 + 3) / 2
  # With a core for each the slower goes on as before.
  assert free_step(np.array([[30, 60, 90], [45, 90, 135]]), 45) == (2 + 3) / 2
  # The last stretch may be shorter.
  assert free_step(np.array([[30.0, 40.0]]), 20) == 2


def test_a_turn_is_shown_beside_its_local_steps():
  turns = [Turn(0.0103, 0.0001, 0.01), Turn(0.0208, 0, 0.02)]
  assert turns[0].cells() == ('10.3 ms', '10.0 ms', '+3.0%', '1.0%')
  assert re.match(r'longer .* by 3.5% \(n = 2, .*\), of it 0.5% waiting', mean_overhead(turns))
  every = [Turn(0.06, None, 0.01), Turn(0.07, None, 0.01)]
  assert every[0].cells()[-2:] == ('+500.0%', '-')
  assert 'waiting' not in mean_overhead(every)


@pytest.mark.slow
def test_each_turn_is_a_row(tmp_path):
  path = tmp_path / 'turns.csv'
  options = [f'--config.{option}' for option in SMALL]
  process = command(
    'systems.overhead', TINY, '--cycles=1', f'--csv={path}', '--config.periods.params=4', *options
  )
  output, errors = process.communicate()
  assert process.returncode == 0, errors
  table, mean = output.strip().split('\n\n')
  assert len(table.splitlines()) == 2 + CYCLE
  assert re.match(r'longer than a local step by \S+% \(n = 6, 95% CI', mean)
  rows = list(csv.DictReader(path.open()))
  assert [set(row) for row in rows] == [{'step_s', 'waiting_s', 'local_step_s'}] * CYCLE
  assert all(0 < float(row[name]) < 10 for row in rows for name in ('step_s', 'local_step_s'))


@pytest.mark.slow
def test_processes_that_would_measure_something_else_are_refused(tmp_path):
  address = f'--coordinator=127.0.0.1:{free_port()}'
  run = [TINY, address, '--num_processes=2', *(f'--config.{option}' for option in SMALL)]
  pair = [
    command('systems.overhead', *run, f'--process_id={i}', f'--cycles={i + 1}') for i in range(2)
  ]
  for process in pair:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert 'processes 0 and 1 do not run the same: cycles (1 and 2)' in errors
