"""How many programs are dispatched before one is waited for."""

import jax

from desloc_jax.train import in_flight


def test_what_is_too_far_back_is_waited_for_in_order(monkeypatch):
  waited_for = []
  monkeypatch.setattr(jax, 'block_until_ready', waited_for.append)
  dispatched = in_flight.InFlight()
  results = [f'step {number}' for number in range(in_flight.AHEAD + 2)]
  assert [dispatched.add(result) for result in results] == results
  assert waited_for == results[:2]
