"""Processes that are asked to stop agree on the step after which they do; played by threads."""

import concurrent.futures
import random
import signal
import time

import pytest

from desloc_jax.hosts import ending, interruption
from desloc_jax.hosts.board import Board
from desloc_jax.hosts.interruption import Interrupted, last_step, StopRequest


def boards(count):
  """Returns boards whose notes are in the same dictionary for all who are played."""
  played, notes = [Board(count, index) for index in range(count)], {}
  for board in played:
    board._notes = notes
  return played


@pytest.fixture(autouse=True)
def soon(monkeypatch):
  monkeypatch.setattr(interruption, '_POLL_S', 0.02)


def run(board, rng, asks=(), last=10_000):
  """Plays the loop of a process; returns the step after which it stopped."""
  with StopRequest(board) as request:
    request.begin(0)
    for step in range(1, last + 1):
      time.sleep(rng.uniform(0, 0.002))
      if step in asks:
        request.ask(signal.SIGTERM)
      if step < last and request.stops_after(step):
        return step
  return last


@pytest.mark.parametrize('seed', range(5))
def test_all_stop_after_the_same_step(seed):
  rng = random.Random(seed)
  asks = [{rng.randrange(1, 40)} if i == seed % 3 or seed == 4 else () for i in range(3)]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    playing = [pool.submit(run, *each) for each in zip(boards(3), [rng] * 3, asks, strict=True)]
    steps = {each.result(timeout=60) for each in playing}
  assert len(steps) == 1 and min(map(min, filter(None, asks))) < steps.pop() < 10_000


def test_none_waits_for_an_agreement_at_the_end():
  """The step that they agree on may be one that the run does not have."""
  for last in range(1, 8):
    rng, asks = random.Random(last), ({last - 1, 1}, (), {last})
    with concurrent.futures.ThreadPoolExecutor() as pool:
      playing = [pool.submit(run, b, rng, a, last) for b, a in zip(boards(3), asks, strict=True)]
      assert len({each.result(timeout=60) for each in playing}) == 1


def test_the_last_step_is_one_that_none_has_begun():
  assert last_step(['7', '12', '9']) == 13
  assert last_step(['7', 'starting']) is None


def test_before_the_first_step_all_stop_without_one():
  first, second = boards(2)
  with StopRequest(first) as request, StopRequest(second) as other:
    other.begin(3)
    request.ask(signal.SIGINT)
    assert request._agreed.wait(timeout=30)
    with pytest.raises(Interrupted, match='SIGINT before its first step') as raised:
      request.begin(3)
    assert (raised.value.step, raised.value.exit_code) == (None, 130)
    with pytest.raises(Interrupted, match='SIGINT before its first step'):
      while not other.stops_after(4):
        time.sleep(0.01)


@pytest.mark.parametrize(
  ('number', 'code'),
  [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
)
def test_exit_codes(number, code):
  assert Interrupted(5, number).exit_code == code


@pytest.mark.parametrize('number', [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_are_caught_and_given_back(number):
  before = signal.signal(number, signal.SIG_DFL)
  try:
    with StopRequest(*boards(1)) as request:
      request.begin(0)
      signal.raise_signal(number)
      step, deadline = 1, time.monotonic() + 30
      while not request.stops_after(step):
        assert time.monotonic() < deadline
        step += 1
      assert request.signal_number == number
    assert signal.getsignal(number) == signal.SIG_DFL
  finally:
    signal.signal(number, before)


def test_the_next_run_of_an_experiment_is_stopped_by_the_same_signals(monkeypatch):
  monkeypatch.setattr(ending, '_may_be_ended', True)
  handlers = {number: signal.getsignal(number) for number in interruption._SIGNALS}
  for _ in range(2):
    with StopRequest(*boards(1)):
      for number in handlers:
        assert signal.getsignal(number) != handlers[number]
    assert handlers == {number: signal.getsignal(number) for number in handlers}


def test_under_nohup_a_hangup_is_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with StopRequest(*boards(1)):
      assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
      assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
  finally:
    signal.signal(signal.SIGHUP, before)
