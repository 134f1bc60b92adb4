"""How many programs are dispatched before one is waited for."""

import jax
import pytest

from desloc_jax.train.speed import in_flight


@pytest.fixture
def clock(monkeypatch):
  """Results, whose programs take the seconds that are in them; gives those that were waited for."""
  now, waited_for = [0.0], []

  def wait(seconds):
    now[0] += seconds
    waited_for.append(seconds)

  monkeypatch.setattr(jax, 'block_until_ready', wait)
  monkeypatch.setattr(in_flight.time, 'monotonic', lambda: now[0])
  return waited_for


def test_what_is_too_far_back_is_waited_for_in_order(clock):
  dispatched, arrived = in_flight.InFlight(), []
  counted = in_flight.InFlight(lambda: arrived.append(1))
  results = [i / 1000 for i in range(30)]
  assert [dispatched.add(result) for result in results] == results
  assert clock == results[: 30 - in_flight.MOST]
  for result in results:
    counted.add(result)
  assert len(arrived) == 30 - in_flight.MOST


@pytest.mark.parametrize(
  ('seconds', 'ahead'), [(0.01, 8), (0.25, 8), (0.5, 4), (1.0, 2), (60.0, 2)]
)
def test_two_seconds_of_work_are_in_flight(clock, seconds, ahead):
  dispatched = in_flight.InFlight()
  for _ in range(40):
    dispatched.add(seconds)
  assert len(clock) == 40 - ahead


def test_results_that_come_at_once_after_a_long_wait_do_not_count_as_fast(clock):
  """As those do that a line of the log has waited for already."""
  dispatched = in_flight.InFlight()
  for i in range(60):
    dispatched.add(0.0 if i % 2 else 8.0)
    assert i + 1 - len(clock) <= in_flight.LEAST
