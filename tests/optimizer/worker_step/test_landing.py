"""Syncs that land some steps after they were sent: rules, events, and what is refused."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import optax
import pytest

from desloc_jax import desloc, HealthCheck, landed, periods_from_half_lives, synced, Timetable
from desloc_jax.optimizer.syncs import Context, LANDINGS, make_landing, mean, quantised
from desloc_jax.optimizer.worker_step import exchange
from desloc_jax.optimizer.worker_step.frame import Frame
from tests import problems, workers
from tests.adam_workers import ADAM, adam_periods, gradient, PARAMS
from tests.references import delays_reference
from tests.runs import same_bits

WORKERS, STEPS = 5, 50
PERIODS, DELAYS = (4, 6, 10), (3, 2, 5)


def late(rule, delays=DELAYS, share=0.25, sync=mean):
  names = ('params', 'mu', 'nu')
  rules = (rule, *(('keep' if rule == 'eager' else rule,) * 2))
  return {
    name: sync()._replace(delay=delay, landing=make_landing(each, share, positive=name == 'nu'))
    for name, delay, each in zip(names, delays, rules, strict=True)
  }


@pytest.mark.parametrize('outer', [None, (0.7, 0.9)], ids=['averaging', 'nesterov'])
@pytest.mark.parametrize('rule', LANDINGS)
def test_rules_are_those_of_the_reference(rule, outer):
  of_all, of_worker, x0 = problems.quadratic(WORKERS, STEPS)
  x, v, model = delays_reference.run(
    of_all, np.tile(x0, (WORKERS, 1)), STEPS, PERIODS, DELAYS, rule, share=0.25, outer=outer,
    last=outer is None,
  )  # fmt: skip
  with jax.enable_x64(True):
    tx = desloc(
      optax.adam(0.05), dict(zip(('params', 'mu', 'nu'), PERIODS, strict=True)), syncs=late(rule),
      outer=outer and optax.sgd(outer[0], momentum=outer[1], nesterov=True),
      last_step=None if outer else STEPS,
    )  # fmt: skip
    run = workers.run(tx, {'w': jnp.asarray(x0)}, of_worker, WORKERS, STEPS, move=workers.by_step)
    for t, (state, params) in enumerate(run):
      np.testing.assert_allclose(state.params['w'], x[t], rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(state.inner[0].nu['w'], v[t], rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(params['w'], model[t], rtol=1e-9, atol=1e-12)
  assert max(abs(v[t] - v[t - 1]).max() for t in range(20, STEPS)) > 1e-6  # It is no fixed point.


def test_with_no_delay_there_is_nothing_to_keep():
  """keep, eager and mix of share 0 are what there was, in bits and in the state's arrays."""
  plain = list(workers.run(desloc(ADAM, adam_periods(3, 4, 6)), PARAMS, gradient, 4, 12))[-1]
  for rule in LANDINGS:
    tx = desloc(ADAM, adam_periods(3, 4, 6), syncs=late(rule, (0, 0, 0), share=0.0))
    assert same_bits(plain, list(workers.run(tx, PARAMS, gradient, 4, 12))[-1])


@pytest.mark.parametrize('timing', ['post', 'pre'])
def test_what_is_sent_and_what_lands(timing):
  syncs = {name: sync for name, sync in late('keep', (2, 3, 0)).items() if name != 'nu'}
  tx = desloc(ADAM, adam_periods(4, 6, None), timing=timing, syncs=syncs)
  states = [workers.init(tx, PARAMS, 4)]
  states += [state for state, _ in workers.run(tx, PARAMS, gradient, 4, 16)]
  events = {'sent': [], 'landed': []}
  for t, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True), start=1):
    events['sent'] += [(t, n) for n, was in synced(before, after).items() if was]
    events['landed'] += [(t, n) for n, was in landed(before, after).items() if was]
  pre = timing == 'pre'
  sent = [(4, 'params'), (6, 'mu'), (8, 'params'), (12, 'params'), (12, 'mu'), (16, 'params')]
  assert sorted(events['sent']) == sorted((t + pre, n) for t, n in sent if t + pre <= 16)
  came = [(t + (2 if n == 'params' else 3), n) for t, n in sent]
  assert sorted(events['landed']) == sorted((t + pre, n) for t, n in came if t + pre <= 16)


@pytest.mark.parametrize('rule', ['keep', 'eager'])
def test_over_devices_with_checked_types_as_in_a_vmap(rule):
  syncs = late(rule, (2, 1, 3), sync=lambda: quantised(16))
  tx = desloc(ADAM, adam_periods(3, 4, 6), syncs=syncs, health=HealthCheck())
  mesh = jax.make_mesh((4,), ('workers',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
  step = jax.jit(workers.make_manual_step(tx, gradient, mesh, workers.by_step))
  state, params = workers.init(tx, PARAMS, 4), PARAMS
  for t, (expected, model) in enumerate(workers.run(tx, PARAMS, gradient, 4, 6)):
    state, params = step(t, state, params)
    np.testing.assert_allclose(state.params['w'], expected.params['w'], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params['w'], model['w'], rtol=1e-4, atol=1e-5)


def test_what_another_program_agrees_on_lands_with_the_same_bits():
  """The seam: `agree` of the arguments of its step may be computed elsewhere, until it lands."""
  syncs = late('keep', (2, 2, 2), sync=lambda: quantised(8))
  tx = desloc(optax.sgd(0.05), {'params': 4}, syncs={'params': syncs['params']})
  frame = Frame(
    inner=optax.sgd(0.05), periods={'params': 4}, axis_name='workers', outer=None, timing='post',
    reset=(), coin_key=None, warmup_steps=0, health=None, guard=True,
    syncs={'params': syncs['params']}, last_step=None,
  )  # fmt: skip

  def elsewhere(snapshot, model, drift, own, shared, round):
    memory = exchange.Memory(own, shared)
    context = Context('workers', None, round)
    agreed, _, after = exchange.agree(frame, 'params', snapshot, model, drift, memory, context)
    return agreed, after.own

  send = jax.jit(jax.vmap(elsewhere, (0, None, 0, 0, None, None), (None, 0), axis_name='workers'))
  step = jax.jit(workers.make_step(tx, gradient, 4, move=workers.by_step))
  inside, model = workers.init(tx, PARAMS, 4), PARAMS
  outside, other = inside, model
  for t in range(12):
    inside, model = step(t, inside, model)
    before = outside
    outside, other = step(t, outside, other)
    if synced(before, outside)['params']:
      of = lambda state, name: getattr(state.memory, name)['params']
      agreed, own = send(
        outside.flight.sent['params'], other, before.drift['params'], of(before, 'own'),
        of(before, 'shared'), before.step,
      )  # fmt: skip
      flight = outside.flight._replace(agreed={'params': agreed})
      memory = outside.memory._replace(own={'params': own})
      outside = outside._replace(flight=flight, memory=memory)
    assert same_bits((inside, model), (outside, other))


@pytest.mark.parametrize('rule', LANDINGS)
def test_a_worker_that_breaks_never_lands(rule):
  def broken(t, worker, x):
    return jax.tree.map(
      lambda g: jnp.where((t == 4) & (worker == 1), jnp.nan, g), gradient(t, worker, x)
    )

  tx = desloc(ADAM, adam_periods(3, 3, 6), syncs=late(rule, (2, 2, 2)), health=HealthCheck())
  run = list(workers.run(tx, PARAMS, broken, 4, 16))
  assert all(np.isfinite(x).all() for _, model in run for x in jax.tree.leaves(model))
  state = run[-1][0]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.inner)))
  assert state.health.restarts.tolist() == [0, 1, 0, 0]


def test_a_worker_that_was_away_rejoins():
  active = lambda t: {'active': jnp.arange(4) != jnp.where(t < 7, 2, 4)}
  tx = desloc(ADAM, adam_periods(3, 3, 6), syncs=late('overwrite', (2, 2, 2)))
  states = list(workers.run(tx, PARAMS, gradient, 4, 5, extra=active))
  state, model = states[-1]  # It lands at step 5.
  assert np.array_equal(state.params['w'][2], model['w'])


REFUSED = {
  'as long as the period': (
    {},
    (4, 2, 2),
    'params cannot land 4 .* after 4; expected .* at most 3',
  ),
  'a warm-up': ({'warmup_steps': 2}, (2, 2, 2), 'in a warm-up it is sent at every step'),
  'coins': ({'coin_key': jax.random.key(0)}, (2, 2, 2), 'by coins the next one may be sent before'),
  'negative': ({}, (-1, 2, 2), 'the delay of params is -1; expected a number of steps >= 0'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_delays_that_cannot_work_are_refused(name):
  options, delays, message = REFUSED[name]
  with pytest.raises(ValueError, match=message):
    desloc(ADAM, adam_periods(4, 6, 8), syncs=late('keep', delays), **options)


def test_schedules_are_refused_and_timetables_are_read():
  syncs = {'params': mean()._replace(delay=2)}
  with pytest.raises(ValueError, match='a schedule may send the next one before'):
    desloc(optax.sgd(0.1), {'params': lambda step: 4}, syncs=syncs)
  desloc(optax.sgd(0.1), {'params': Timetable(np.array([3, 6, 12]))}, syncs=syncs)
  with pytest.raises(ValueError, match='sent after 2; expected a delay of at most 1'):
    desloc(optax.sgd(0.1), {'params': Timetable(np.array([3, 5, 12]))}, syncs=syncs)


def test_moments_do_not_land_eagerly():
  syncs = {'mu': mean()._replace(delay=1, landing=make_landing('eager'))}
  with pytest.raises(ValueError, match='mu cannot land eagerly, as it has no consensus; take keep'):
    desloc(ADAM, periods_from_half_lives(4), syncs=syncs)
