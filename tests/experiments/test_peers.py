"""The comparison with peers, with programs that stand for theirs."""

import argparse
import sys

import numpy as np
import pytest

from experiments.systems.peers import __main__ as command
from experiments.systems.peers.environments import NotHere, python_of
from experiments.systems.peers.running import ProgramFailed, Running

PROGRAM = """
from experiments.systems.peers.task import serve
print('a library says something')
done = []
def steps(first, count):
  done.extend(range(first, first + count))
  return float(len(done)) if done == list(range(len(done))) else float('nan')
serve({'versions': 'none'}, steps)
"""


def test_a_program_answers_turns_between_what_libraries_print():
  program = Running([sys.executable, '-c', PROGRAM])
  assert program.listen()['versions'] == 'none'
  for steps, done in ((3, 4), (5, 9)):
    program.ask(steps)
    answer = program.listen()
    assert answer['loss'] == done and answer['memory_bytes'] > 1e6
  program.end()


def test_a_program_that_fails_says_why():
  program = Running([sys.executable, '-c', 'raise SystemExit("no such device")'])
  with pytest.raises(ProgramFailed, match='no such device'):
    program.listen()
  program.end()


def test_an_environment_that_cannot_be_made_says_why(tmp_path):
  with pytest.raises(NotHere, match='no Python 3.12 or newer'):
    python_of('maxtext', tmp_path, ['python-that-is-not-here'])


class Fake:
  """Makes 100 steps a second if it is ours, else 50."""

  def __init__(self, command, env):
    self.rate = 100 if 'diloco' in command else 50
    self.asked = []

  def listen(self):
    if not self.asked:
      return {'versions': 'v1', 'start_s': 1.0, 'payload_bytes': 1000}
    return {'seconds': self.asked[-1] / self.rate, 'loss': 2.5, 'memory_bytes': 10**8}

  def ask(self, steps):
    self.asked.append(steps)

  def end(self):
    pass


def test_rows_are_ratios_of_turns_and_say_who_could_not_run(monkeypatch, tmp_path):
  def python_of(name, cache, pythons):
    if name == 'maxtext':
      raise NotHere('no Python 3.12 or newer')
    return 'python'

  monkeypatch.setattr(command, 'Running', Fake)
  monkeypatch.setattr(command, 'python_of', python_of)
  rows = command.measure('toy', argparse.Namespace(cache=tmp_path, pythons=[], turns=5))
  ours, _, torchft, maxtext = rows
  assert ours['steps_per_s'] == 100 and ours['ours_over_it'] == 1
  assert torchft['ours_over_it'] == 2 and torchft['goal'] == 1.2
  assert maxtext['why not'] == 'no Python 3.12 or newer'
  header, *cells = command.table(rows)
  assert {len(row) for row in cells} == {len(header)}
  assert 'no Python 3.12 or newer' in cells[3]


def test_all_train_on_the_same_bytes():
  tokens = command.tokens_of(command.TASKS['toy'])
  assert tokens.dtype == np.uint8 and tokens.shape[1:] == (2, 16, 65)
  assert b' the ' in tokens.tobytes()
