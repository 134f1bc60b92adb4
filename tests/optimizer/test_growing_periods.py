"""Periods that grow: averages still come together, and are counted and announced as they come."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.tiny import get_config
from desloc_jax import desloc, growing_timetables, synced, Timetable
from desloc_jax.checkpoints.segment import BEGINNING, make_clock
from desloc_jax.optimizer import sync_periods as periods_lib
from desloc_jax.optimizer.sync_periods import grown
from desloc_jax.optimizer.worker_step.triggers import due_now, steps_until_due
from desloc_jax.train.setup.build_periods import scheduled_periods, syncs_of_run
from tests import workers

QUANTITIES = ('params', 'mu', 'nu')


def simulate(periods, steps, *, pre=False, warmup=0, key=None, nobody=()):
  """Returns by step the names of what is averaged, and the counters after it, by `due_now`."""

  @jax.jit
  def step(counters, t):
    counters = {name: abs(c) + (not pre) for name, c in counters.items()}
    due = due_now(periods, counters, t, key, warmup, t + (not pre))
    due = {name: now & ~jnp.isin(t, jnp.asarray(nobody, int)) for name, now in due.items()}
    counters = {name: jnp.where(due[name], 0, c) + pre for name, c in counters.items()}
    return counters, (due, counters)

  begin = dict.fromkeys(periods, jnp.int32(0))
  _, (due, counters) = jax.lax.scan(step, begin, jnp.arange(steps))
  due, counters = (
    {k: v.tolist() for k, v in tree.items()} for tree in jax.device_get((due, counters))
  )
  rows = lambda tree: [{k: v[t] for k, v in tree.items()} for t in range(steps)]
  return [{k for k, now in row.items() if now} for row in rows(due)], rows(counters)


def of_run(**options):
  config = get_config()
  config.update_from_flattened_dict(options)
  return config, make_clock(config, BEGINNING)


@pytest.mark.parametrize('timing', ['post', 'pre'])
@pytest.mark.parametrize('warmup', [0, 7])
@pytest.mark.parametrize('growth', [0.3, 1.0, 4.0, 40.0])
@pytest.mark.parametrize('numbers', [(2, 6, 12), (8, 24, 48), (5, 5, 5), (64, 16, 32), (1, 3, 6)])
def test_averages_come_together_are_counted_and_announced(numbers, growth, warmup, timing):
  steps, periods = 800, dict(zip(QUANTITIES, numbers, strict=True))
  config, clock = of_run(steps=steps, period_growth=growth, timing=timing, sync_warmup_steps=warmup)
  scheduled = scheduled_periods(periods, config, clock)
  found, counters = simulate(scheduled, steps, pre=timing == 'pre', warmup=warmup)
  shortest = min(periods, key=periods.get)
  # No step averages anything without the quantity of the shortest period.
  assert all(shortest in names for names in found if names)
  counts = {name: sum(name in names for names in found) for name in periods}
  assert counts == syncs_of_run(periods, config, clock)
  after = [names for names in found[warmup:] if shortest in names]
  for name in periods:
    multiple = periods[name] // periods[shortest]
    places = [i for i, names in enumerate(after) if name in names]
    assert all(b - a == multiple for a, b in zip(places, places[1:], strict=False))
  for done in range(1, steps):
    for name, period in scheduled.items():
      next_time = next((t + 1 for t in range(done, steps) if name in found[t]), None)
      announced = steps_until_due(
        period, counters[done - 1][name], done, pre=timing == 'pre', warmup_steps=warmup
      )
      assert next_time is None or announced == next_time - done, (name, done)
      if next_time is None:  # After the run.
        assert announced is None or announced > steps - done


def test_the_shortest_period_grows_as_its_own_rule_says():
  """The next time is that at which the steps since the last one reach the period of the step."""
  (times,) = {table.times.tobytes() for table in growing_timetables(
    dict(zip(QUANTITIES, (2, 6, 12), strict=True)), 4.0, 500, 500).values()}  # fmt: skip
  times, previous, expected = np.frombuffer(times, np.int64).tolist(), 0, []
  for t in range(500):
    if t + 1 - previous >= round(2 * (1 + 3 * t / 500)):
      expected.append(t + 1)
      previous = t + 1
  assert times == expected
  table = Timetable(np.asarray(times), 3)
  assert [table.count(n) for n in (0, times[1], times[2], 500)] == [0, 0, 1, len(times) // 3]


def test_periods_that_are_no_multiples_grow_alone():
  tables = growing_timetables({'params': 4, 'mu': 6, 'nu': None}, 3.0, 300, 300)
  assert tables['nu'] is None
  alone = growing_timetables({'mu': 6}, 3.0, 300, 300)
  np.testing.assert_array_equal(tables['mu'].times, alone['mu'].times)


def test_what_nobody_could_average_comes_at_once_and_together():
  tables = growing_timetables(dict(zip(QUANTITIES, (4, 12, 24), strict=True)), 2.0, 200, 200)
  late = tables['mu'].after(50) - 1  # The step whose result is averaged.
  found, _ = simulate(tables, 200, nobody=range(late, late + 2))
  assert not found[late] and {'params', 'mu'} <= found[late + 2]


def test_parameters_are_averaged_at_each_of_the_last_steps():
  """K = 8, 24 and 48 over 100 steps, the last 10 dense: at 8, ..., 88, then 91 to 100."""
  periods = dict(zip(QUANTITIES, (8, 24, 48), strict=True))
  config, clock = of_run(steps=100, sync_end_steps=10)
  scheduled = scheduled_periods(periods, config, clock)
  found, _ = simulate(scheduled, 100)
  of = lambda name: [t + 1 for t, names in enumerate(found) if name in names]
  assert of('params') == [*range(8, 89, 8), *range(91, 101)]
  assert of('mu') == [24, 48, 72, 96] and of('nu') == [48, 96]
  assert syncs_of_run(periods, config, clock) == {'params': 21, 'mu': 4, 'nu': 2}
  config, clock = of_run(steps=100, sync_end_steps=10, stochastic=True, period_growth=0.5)
  coins = scheduled_periods(periods, config, clock)
  found, _ = simulate(coins, 100, key=jax.random.key(1))
  assert of('params')[-10:] == [*range(91, 101)] and len(of('mu')) < 20
  assert syncs_of_run(periods, config, clock)['params'] == pytest.approx(10 + 90 / 6, rel=0.1)
  config, clock = of_run(steps=100, sync_end_steps=1, period_growth=0.25)
  found, _ = simulate(scheduled_periods(periods, config, clock), 100)
  gaps = np.diff(of('params'))
  assert gaps[0] == 7 and gaps[-2] == 2 and of('params')[-1] == 100


def test_a_transform_follows_its_timetables():
  tables = growing_timetables({'params': 2, 'mu': 4, 'nu': 8}, 4.0, 40, 40)
  expected, _ = simulate(tables, 40)
  tx = desloc(optax.adam(0.1), tables)
  pull = lambda t, worker, x: {'w': x['w'] - worker}
  before, found = workers.init(tx, {'w': jnp.ones(2)}, 2), []
  for state, _ in workers.run(tx, {'w': jnp.ones(2)}, pull, 2, 40):
    found.append({name for name, was in synced(before, state).items() if was})
    before = state
  assert found == expected
  with pytest.raises(ValueError, match='a timetable leaves nothing to chance'):
    desloc(optax.adam(0.1), tables, coin_key=jax.random.key(0))


def test_coins_are_expected_as_often_as_they_come():
  config, clock = of_run(steps=6000, period_growth=3.0, stochastic=True, sync_warmup_steps=20)
  periods = dict(zip(QUANTITIES, (4, 12, 24), strict=True))
  scheduled = scheduled_periods(periods, config, clock)
  found, _ = simulate(scheduled, 6000, key=jax.random.key(0), warmup=20)
  for name, count in syncs_of_run(periods, config, clock).items():
    assert sum(name in names for names in found) == pytest.approx(count, rel=0.25)
  assert int(grown(4, 3.0, 6000, 6000)) == 12


def test_more_averages_than_a_timetable_holds_are_refused(monkeypatch):
  monkeypatch.setattr(periods_lib, '_MOST_TIMES', 1000)
  with pytest.raises(ValueError, match='more than 1,000 averages'):
    growing_timetables({'params': 1}, 1.0001, 2**31 - 1, 2**31 - 1)
