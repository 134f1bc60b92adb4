"""What averaging costs, measured in turns with steps that send nothing."""

import csv
import json
import re
import time
import types

import pytest

from configs import tiny
from desloc_jax.errors import UserError
from desloc_jax.plan import make_plan
from desloc_jax.train import exchange
from experiments.overhead import (
  CYCLE,
  cycle_of,
  mean_overhead,
  parse,
  silent,
  take_turn,
  Turn,
)
from experiments.scales import changed
from experiments.several import free_port
from tests.experiment_runs import command, SMALL

TINY = '--config=configs/tiny.py'


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--cycles=0'], '--cycles is 0; expected at least 1'),
    (['--config.periods.params=0'], 'periods.params is 0; expected at least 1'),
    (['--config.periods.params=-1'], 'periods.params is -1; expected at least 1'),
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
  assert config.steps == (20 * 6 + 1) * 8
  _, config = parse([TINY, '--cycles=1', '--config.periods.params=8'])
  assert config.steps == tiny.get_config().steps  # Long enough.


@pytest.mark.parametrize(
  ('periods', 'turns'), [({}, 6), ({'mu': 8}, 6), ({'nu': 32}, 12), ({'mu': 0, 'nu': 20}, 30)]
)
def test_a_cycle_has_all_averages_equally_often(periods, turns):
  options = {f'periods.{name}': value for name, value in periods.items()}
  assert cycle_of(changed(tiny.get_config(), {'periods.params': 8, **options})) == turns


@pytest.mark.parametrize(
  'options',
  [
    {'method': 'desloc', 'periods.nu': 7},
    {'method': 'desloc', 'inner.name': 'sgd', 'periods.trace': 7},
    {'method': 'desloc', 'inner.name': 'ademamix'},
    {'method': 'desloc', 'sync_warmup_steps': 2},
    {'method': 'mt_dao', 'inner.name': 'adamw'},
    {'method': 'diloco', 'inner.name': 'lion'},
    {'method': 'favg_reset', 'inner.name': 'adopt'},
    {'method': 'ddp', 'inner.name': 'muon'},
  ],
)
def test_nothing_is_sent_without_communication(options):
  config = changed(tiny.get_config(), options)
  sent = lambda config: make_plan(config).ledgers[config.method].bytes_per_step
  assert sent(config) > 0
  assert sent(silent(config)) == 0
  assert not silent(config).sync_warmup_steps  # The ledger is of the steps after it.


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


def test_a_turn_has_as_many_steps_of_each_and_ends_with_the_average(clock, monkeypatch):
  def wait():
    clock.now += 100  # Is none of the steps' time.

  monkeypatch.setattr(exchange, 'wait_for_all', wait)
  method, without = Timed(clock, 3, average_s=80), Timed(clock, 2)
  assert take_turn(method, without, 40) == Turn(step_s=5, waiting_s=0, silent_step_s=2)
  assert method.steps == without.steps == [16, 16, 7, 1]
  assert take_turn(method, without, 1) == Turn(step_s=83, waiting_s=0, silent_step_s=2)


def test_the_method_waits_for_the_slowest_process_and_silence_for_none(clock, monkeypatch):
  def with_a_slower_one(text):
    return [text, json.dumps([2 * seconds for seconds in json.loads(text)])]

  monkeypatch.setattr(exchange, 'exchange_text', with_a_slower_one)
  turn = take_turn(Timed(clock, 1), Timed(clock, 1), 32)
  assert (turn.step_s, turn.waiting_s, turn.silent_step_s) == (2, 0.5 * 31 / 32, 1.5)


def test_a_turn_is_shown_beside_its_silent_steps():
  turns = [Turn(0.0103, 0.0001, 0.01), Turn(0.0208, 0, 0.02)]
  assert turns[0].cells() == ('10.3 ms', '10.0 ms', '+3.0%', '1.0%')
  assert re.match(r'longer .* by 3.5% \(n = 2, .*\), of it 0.5% waiting', mean_overhead(turns))


@pytest.mark.slow
def test_each_turn_is_a_row(tmp_path):
  path = tmp_path / 'turns.csv'
  options = [f'--config.{option}' for option in SMALL]
  process = command(
    'overhead', TINY, '--cycles=1', f'--csv={path}', '--config.periods.params=4', *options
  )
  output, errors = process.communicate()
  assert process.returncode == 0, errors
  table, mean = output.strip().split('\n\n')
  assert len(table.splitlines()) == 2 + CYCLE
  assert re.match(r'longer than without communication by \S+% \(n = 6, 95% CI', mean)
  rows = list(csv.DictReader(path.open()))
  assert [set(row) for row in rows] == [{'step_s', 'waiting_s', 'silent_step_s'}] * CYCLE
  assert all(0 < float(row[name]) < 10 for row in rows for name in ('step_s', 'silent_step_s'))


@pytest.mark.slow
def test_processes_that_would_measure_something_else_are_refused(tmp_path):
  address = f'--coordinator=127.0.0.1:{free_port()}'
  run = [TINY, address, '--num_processes=2', *(f'--config.{option}' for option in SMALL)]
  pair = [command('overhead', *run, f'--process_id={i}', f'--cycles={i + 1}') for i in range(2)]
  for process in pair:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert 'processes 0 and 1 do not run the same: cycles (1 and 2)' in errors
