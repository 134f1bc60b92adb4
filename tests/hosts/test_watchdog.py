"""When a run is taken for stuck: its clock is a number of ticks here, in which nothing waits."""

import os
import subprocess
import sys
import tempfile

import pytest

from desloc_jax.hosts import watchdog as watchdog_lib
from desloc_jax.hosts.board import Board
from desloc_jax.hosts.watchdog import Watchdog
from experiments.several import ROOT


class Ticks:
  """Stands in for the event that the watchdog waits for: so many ticks pass, at each of which `act`."""

  def __init__(self, count, act):
    self.left, self._act = count, act

  def wait(self, seconds):
    assert seconds == 1
    self.left -= 1
    self._act()
    return self.left < 0


def watched(tmp_path, monkeypatch, before=lambda dog: None, act=lambda dog: None, ticks=5000):
  """Returns after how many seconds of which silence a run of this kind is ended; None: it is not."""
  dog, told = Watchdog(100, tmp_path, Board()), []
  monkeypatch.setattr(dog, '_tell_and_end', told.append)
  before(dog)
  dog._ended = clock = Ticks(ticks, lambda: act(dog))
  dog._watch()
  return (ticks - clock.left, told[0]) if told else None


def arrivals(seconds, monkeypatch):
  """Returns what lets some steps arrive, each after so many seconds."""

  def before(dog):
    for i in range(5):
      monkeypatch.setattr(watchdog_lib.time, 'monotonic', lambda i=i: 1000 + i * seconds)
      dog.step_arrived()

  return before


def test_a_step_that_does_not_come(tmp_path, monkeypatch):
  after, text = watched(tmp_path, monkeypatch, arrivals(0.1, monkeypatch))
  assert after == 101 and 'no progress for 101 s in steps (processes.stuck_timeout_s is 100' in text


def test_slow_steps_may_take_twenty_times_as_long(tmp_path, monkeypatch):
  after, _ = watched(tmp_path, monkeypatch, arrivals(30, monkeypatch))
  assert after == 601


def test_what_is_no_step_may_take_ten_times_as_long(tmp_path, monkeypatch):
  after, text = watched(tmp_path, monkeypatch)
  assert after == 1001 and 'in the start' in text

  def evaluate(dog):
    arrivals(0.1, monkeypatch)(dog)
    dog.enter('an evaluation')

  after, text = watched(tmp_path, monkeypatch, evaluate)
  assert after == 1001 and 'in an evaluation' in text


def test_after_it_the_time_is_that_of_steps_again(tmp_path, monkeypatch):
  def save(dog):
    arrivals(0.1, monkeypatch)(dog)
    with dog.during('a checkpoint'):
      pass

  after, _ = watched(tmp_path, monkeypatch, save)
  assert after == 101


@pytest.mark.parametrize('progress', [Watchdog.beat, Watchdog.step_arrived])
def test_progress_is_not_ended(tmp_path, monkeypatch, progress):
  assert watched(tmp_path, monkeypatch, act=progress) is None


def test_a_slow_step_among_many_does_not_move_the_limit(tmp_path):
  dog = Watchdog(100, tmp_path, Board())
  dog._durations.extend([1.0] * 9 + [40_000.0])  # The process was stopped for a night.
  dog._phase = 'steps'
  assert dog.limit_s == 100


def test_another_process_that_is_stuck_is_followed(tmp_path, monkeypatch):
  def tell(dog):
    dog._board.count = 2
    monkeypatch.setattr(dog._board, 'read', lambda: {'stuck': '1'})

  after, text = watched(tmp_path, monkeypatch, tell)
  assert after == 1 and 'process 1 is stuck' in text


def test_a_notebook_is_told_and_not_ended(tmp_path, capfd):
  dog = Watchdog(100, tmp_path, Board())
  dog._tell_and_end('error: stuck: no progress')
  assert 'test_a_notebook_is_told_and_not_ended' in capfd.readouterr().err  # Where its thread is.


STUCK_WRITES = """
import os, pathlib, sys, threading, time
from desloc_jax.hosts import ending
from desloc_jax.hosts.board import Board
from desloc_jax.hosts.watchdog import Watchdog
from desloc_jax.hosts import watchdog
watchdog._TELL_S = 2
ending.belong_to_run()
os.set_blocking(2, False)
try:
  while os.write(2, bytes(4096)): pass
except BlockingIOError:
  os.set_blocking(2, True)
with Watchdog(0.05, pathlib.Path(sys.argv[1]), Board()) as dog:
  os.write(2, bytes(10_000))  # Nobody reads.
"""


def test_a_log_that_nobody_reads_does_not_keep_it_from_ending(tmp_path):
  command = [sys.executable, '-c', STUCK_WRITES, str(tmp_path)]
  process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
  try:
    assert process.wait(timeout=60) == 4
  finally:
    process.kill()
  assert 'in <module>' in (tmp_path / 'stuck-0.txt').read_text()


def test_without_a_limit_nothing_is_watched(tmp_path):
  with Watchdog(0, tmp_path, Board()) as dog:
    assert not dog._thread.is_alive()


@pytest.mark.skipif(not hasattr(os, 'memfd_create'), reason='it has files in memory on Linux')
def test_the_stacks_need_no_disk(monkeypatch):
  """Which may be full, read-only, or what is stuck."""
  monkeypatch.setattr(tempfile, 'tempdir', '/nowhere')
  assert b'test_the_stacks_need_no_disk' in watchdog_lib._stacks()
