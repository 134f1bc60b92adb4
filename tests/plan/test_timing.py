"""What devices wait for where syncs are behind the steps."""

import pytest

from desloc_jax.optimizer.sync_periods import Phased
from desloc_jax.plan.timing import least_delay, Link, slowest_link, step_time
from desloc_jax.programs.ledger import Ledger

STEP_S = 0.1
# Of two workers a ring sends the payload itself: a second for the parameters, three in all.
LEDGER = Ledger(2, {'params': 100, 'mu': 100, 'nu': 100}, {'params': 64, 'mu': 192, 'nu': 384})
LINK = Link(100.0)


def wait(behind: int, link: Link = LINK, ledger: Ledger = LEDGER) -> float:
  return step_time(ledger, link, STEP_S, behind=behind).communication_s


def test_a_sync_that_needs_no_more_than_the_steps_before_it_lands_is_free():
  assert least_delay(LEDGER, LINK, STEP_S) == 30
  assert wait(30) == pytest.approx(0, abs=1e-9)
  assert wait(29) > 0


@pytest.mark.parametrize('behind', [1, 10, 20])
def test_devices_wait_for_what_is_left(behind):
  """In 384 steps: four times for the parameters alone, once for two arrays, once for three."""
  hidden = behind * STEP_S
  left = 4 * max(0, 1 - hidden) + max(0, 2 - hidden) + max(0, 3 - hidden)
  assert wait(behind) == pytest.approx(left / 384, rel=1e-6)


def test_what_the_link_has_not_sent_yet_is_waited_for_too():
  """A link that is slower than the steps need limits them, whatever the delay."""
  slow = Link(10.0)  # 90 seconds of syncs in 384 steps of 38.
  for behind in (1, 30, 63):
    total = step_time(LEDGER, slow, STEP_S, behind=behind).total_s
    assert total >= 0.9 * (6 + 2 + 1) * 10 / 384


def test_the_slowest_link_is_the_one_at_which_the_share_is_reached():
  for behind in (0, 1, 30):
    link = slowest_link(LEDGER, 0.0, STEP_S, behind, share=0.01)
    at = lambda speed, behind=behind: step_time(LEDGER, Link(speed), STEP_S, behind=behind).share
    assert at(link.bytes_per_s) <= 0.01 < at(link.bytes_per_s / 1.01)
  assert slowest_link(LEDGER, 0.0, STEP_S, 30, 0.01).bytes_per_s < 100


def test_what_is_never_averaged_costs_nothing():
  never = Ledger(2, {'params': 100}, {'params': float('inf')})
  assert wait(4, ledger=never) == 0 and least_delay(never, LINK, STEP_S) == 0


def test_fragments_need_a_part_of_the_delay():
  """In two parts half a period apart: no step sends both, but the moments of a part with it."""
  halves = {f'{name}-{part}': 50 for name in LEDGER.bytes_per_sync for part in '01'}
  periods = {
    f'{name}-{part}': Phased(period, period // 2 if part == '0' else 0)
    for name, period in LEDGER.periods.items()
    for part in '01'
  }
  ledger = Ledger(2, halves, periods)
  assert least_delay(ledger, LINK, STEP_S) == 15
  assert wait(15, ledger=ledger) == pytest.approx(0, abs=1e-9) and wait(14, ledger=ledger) > 0
