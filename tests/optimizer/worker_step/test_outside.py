"""Exchanges outside of the step: the bits of a delay inside it, and what they leave out."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import optax
import pytest

from desloc_jax import desloc, WORKER_AXES
from desloc_jax.optimizer.fragments import cut
from desloc_jax.optimizer.health import HealthCheck
from desloc_jax.optimizer.over_workers import AXIS_NAMES, over_workers, worker_specs
from desloc_jax.optimizer.syncs import mean, quantised
from desloc_jax.optimizer.syncs.landing import make_landing
from desloc_jax.optimizer.worker_step.outside import (
  OUTCOME_AXES,
  PARTS_AXES,
)
from tests.workers import by_step, init, jit_as_users, make_step

WORKERS, DELAY, STEPS = 4, 3, 41
PERIODS = {'params': 4, 'mu': 12, 'nu': 8}
PARAMS = {'w': jnp.linspace(-1, 1, 300), 'b': jnp.ones(())}


def transform(rule, sync, periods=PERIODS, **options):
  land = functools.partial(make_landing, rule, 0.3)
  averaged = (name for name, period in periods.items() if period)
  syncs = {n: sync(n)._replace(delay=DELAY, landing=land(n == 'nu')) for n in averaged}
  outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
  return desloc(optax.adam(0.05), periods, syncs=syncs, outer=outer, last_step=STEPS, **options)


def gradient(t, worker, x):
  noise = jax.random.normal(jax.random.fold_in(jax.random.key(t), worker))
  return jax.tree.map(lambda y: y - (1 + worker) * noise, x)


def program(tx, name):
  def run(state, consensus, active=None):
    parts = tx.outside.parts_of(name, state, consensus)
    return tx.outside.exchange(name, parts, active)

  axes = {'in_axes': (WORKER_AXES, None, None), 'out_axes': OUTCOME_AXES}
  return jit_as_users(jax.vmap(run, axis_name='workers', **axes))


def train(tx, quantities, active=lambda t: None):
  """Returns consensus and state at the end; what `tx` does not send is put in when it lands."""
  extra = lambda t: {'active': active(t)}
  step = jit_as_users(make_step(tx, gradient, WORKERS, extra, move=by_step))
  exchanges = {name: program(tx, name) for name in quantities} if tx.outside else {}
  put = {name: jit_as_users(functools.partial(tx.outside.with_outcome, name)) for name in exchanges}
  state, params, on_its_way = init(tx, PARAMS, WORKERS), PARAMS, {}
  for t in range(1, STEPS + 1):
    for name in [n for n, (lands, _) in on_its_way.items() if lands == t]:
      state = put[name](state, on_its_way.pop(name)[1])
    state, params = step(t, state, params)
    for name, exchange in exchanges.items():
      if state.counters[name] == 0 and state.flight.left[name] > 0:
        on_its_way[name] = min(t + DELAY, STEPS), exchange(state, params, active(t))
  return params, state


def assert_same(inside, outside):
  for part in ('params', 'inner', 'outer', 'counters', 'memory', 'drift'):
    jax.tree.map(np.testing.assert_array_equal, *(getattr(s, part) for _, s in (inside, outside)))
  jax.tree.map(np.testing.assert_array_equal, inside[0], outside[0])
  assert not np.array_equal(outside[0]['w'], PARAMS['w'])


def int8_or_mean(name):
  return quantised(8, logarithms=name == 'nu') if name != 'mu' else mean()


@pytest.mark.parametrize('rule', ['keep', 'overwrite', 'mix'])
def test_the_trajectory_has_the_bits_of_the_delay_inside(rule):
  """At the last step one sync lands early and one at once: 40 and 41 are near."""
  runs = (train(transform(rule, int8_or_mean, behind=b), PERIODS) for b in (False, True))
  assert_same(*runs)


@pytest.mark.parametrize('period', [4, 8])
def test_fragments_have_the_bits_of_those_inside(period):
  """With a place in flight that they share, and with one for each; and where some come late.

  For a while nobody is there: two parts come late at once, and one waits for the other's place.
  """
  fragments, periods = cut(PARAMS, 2), {'params': period, 'mu': None, 'nu': 2 * period}
  active = lambda t: jnp.ones(WORKERS, bool) & ~jnp.isin(t, jnp.array([4, 8, *range(12, 19), 24]))
  inside, outside = (
    transform('keep', int8_or_mean, behind=behind, fragments=fragments, periods=periods)
    for behind in (False, True)
  )
  names = [f'{name}-{part}' for name in ('params', 'nu') for part in fragments]
  assert_same(train(inside, names, active), train(outside, names, active))


@pytest.mark.parametrize('bad', [(), (2,), (0, 3)])
def test_what_is_not_finite_never_lands(bad):
  tx = transform('keep', lambda name: mean(), behind=True)
  state = init(tx, PARAMS, WORKERS)
  values = jnp.arange(1.0, WORKERS + 1)
  sent = jax.tree.map(
    lambda x: x.at[jnp.array(bad, int)].set(jnp.nan),
    jax.tree.map(lambda x: x + values.reshape(-1, *[1] * (x.ndim - 1)), state.params),
  )
  state = state._replace(flight=state.flight._replace(sent=state.flight.sent | {'params': sent}))
  outcome = program(tx, 'params')(state, PARAMS, None)
  well = [i for i in range(WORKERS) if i not in bad]
  expected = PARAMS['w'] + values[jnp.array(well)].mean()
  np.testing.assert_allclose(outcome.agreed['w'], expected, rtol=1e-6)


def test_what_a_snapshot_takes_on_the_devices_and_on_the_host():
  """On a worker's devices two copies of a quantity; on the host four while it is exchanged, eight in int8."""
  size = 1 << 16
  params = {'w': jnp.ones(size)}
  syncs = {name: mean()._replace(delay=DELAY) for name in PERIODS}
  syncs['mu'] = quantised(8)._replace(delay=DELAY)
  tx = desloc(optax.adam(0.05), PERIODS, syncs=syncs, behind=True, axis_name=AXIS_NAMES)
  state = init(tx, params, WORKERS)
  sizes = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree)) // (4 * size)
  assert {name: sizes(tree) for name, tree in state.flight.sent.items()} == dict.fromkeys(
    PERIODS, WORKERS
  )
  assert {name: sizes(tree) for name, tree in state.flight.agreed.items()} == dict.fromkeys(
    PERIODS, 1
  )
  mesh = Mesh(np.array(jax.devices()[:WORKERS]), ('workers',))
  *sizes, between = on_the_host(tx, 'params', state, params, mesh)
  assert sizes == [1, 1] and between <= 2
  *sizes, between = on_the_host(tx, 'mu', state, params, mesh)
  assert sizes == [2, 2] and between <= 4  # With what int8 remembers of its errors.


def on_the_host(tx, name, state, params, mesh):
  """Returns how many copies of a quantity its exchange takes, gives, and needs in between."""
  exchange = over_workers(
    functools.partial(tx.outside.exchange, name), mesh, (PARTS_AXES,), OUTCOME_AXES
  )

  def placed(spec, tree):
    return jax.device_put(tree, NamedSharding(mesh, spec))

  parts = jax.tree.map(
    placed,
    worker_specs(PARTS_AXES),
    tx.outside.parts_of(name, state, params),
    is_leaf=lambda x: isinstance(x, P),
  )
  memory = jax.jit(exchange).lower(parts).compile().memory_analysis()
  sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
  return [round(each / params['w'].nbytes) for each in sizes]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'health': HealthCheck()}, 'health check'),
    ({'timing': 'pre'}, "timing 'pre'"),
    ({'syncs': {}}, 'params lands in the step that sends it'),
    ({'syncs': {n: mean()._replace(delay=1, landing=make_landing('eager')) for n in ('params',)}},
     'params lands eagerly'),
  ],
)  # fmt: skip
def test_what_cannot_be_outside_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    desloc(optax.sgd(0.1), {'params': 4}, behind=True, **options)
