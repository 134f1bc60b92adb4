"""When the results of steps come, by a thread that waits for them."""

import time

import jax

from desloc_jax.train.speed.arrivals import Arrivals


def test_arrivals_are_those_of_the_results_in_order(monkeypatch):
  monkeypatch.setattr(jax, 'block_until_ready', time.sleep)
  arrivals = Arrivals()
  for seconds in (0.02, 0.0, 0.05):
    arrivals.add(seconds)
  first, second, third = arrivals.take()
  assert second - first < 0.02 and third - second >= 0.05
  assert arrivals.take() == []
  arrivals.close()


def test_a_step_that_fails_has_come_too(monkeypatch):
  """The loop, which waits for it as well, raises what it does."""
  monkeypatch.setattr(jax, 'block_until_ready', lambda result: 1 / result)
  arrivals = Arrivals()
  for result in (0, 1):
    arrivals.add(result)
  assert len(arrivals.take()) == 2
  arrivals.close()
