"""Syncs inside the transform: every one for every quantity."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import optax
import pytest

from desloc_jax import desloc, HealthCheck, transform_ledger
from desloc_jax.optimizer import syncs
from tests import workers

WORKERS, PERIODS, BLOCK = 4, {'params': 2, 'mu': 4, 'nu': 6}, 16
TARGET = {'embed': jnp.linspace(-1.0, 1.0, 60).reshape(5, 12), 'bias': jnp.array([0.5, -0.5])}
PARAMS = jax.tree.map(jnp.zeros_like, TARGET)
SIZE = 4 * 62
SYNCS = {
  'mean': syncs.mean(),
  'bf16': syncs.quantised(16),
  'int8': syncs.quantised(8, BLOCK),
  'int4': syncs.quantised(4, BLOCK),
  'int2': syncs.quantised(2, BLOCK),
  'topk': syncs.topk(8, BLOCK),
  'ef21': syncs.ef21(syncs.in_slices(syncs.uniform(4, BLOCK))),
  'econtrol': syncs.econtrol(syncs.to_everybody(syncs.largest(8, BLOCK))),
  'exempt': syncs.exempt(syncs.quantised(4, BLOCK), 'bias'),
}
LOGARITHMS = syncs.quantised(8, BLOCK, logarithms=True)
OF_QUANTITIES = {f'params by {name}': {'params': sync} for name, sync in SYNCS.items()} | {
  f'mu by {name}': {'mu': syncs.anchored(sync) if name == 'topk' else sync}
  for name, sync in SYNCS.items()
}
OF_QUANTITIES |= {
  'nu by logarithms': {'nu': LOGARITHMS},
  'everything': {'params': SYNCS['topk'], 'mu': SYNCS['int8'], 'nu': LOGARITHMS},
}


def gradient(t, worker, x):
  """Of a parabola; the workers pull to both sides of the target."""
  side = 0.1 * (2 * (worker % 2) - 1)
  return jax.tree.map(lambda p, goal: p - (goal + side), x, TARGET)


def transform(chosen, **options):
  inner = optax.adam(optax.linear_schedule(0.1, 0.0, 90))
  return desloc(inner, PERIODS, syncs=chosen, **options)


def distance(params):
  return float(optax.tree.norm(optax.tree.sub(params, TARGET)) / optax.tree.norm(TARGET))


def rows_are_the_same(tree, workers=WORKERS):
  return all(
    len({np.asarray(x[m]).tobytes() for m in range(workers)}) == 1 for x in jax.tree.leaves(tree)
  )


@pytest.mark.parametrize('name', OF_QUANTITIES)
def test_every_sync_of_every_quantity(name):
  """Converges; after a sync all workers have the same bits; structure and dtypes stay."""
  tx = transform(OF_QUANTITIES[name])
  state, params = workers.init(tx, PARAMS, WORKERS), PARAMS
  before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
  step = jax.jit(workers.make_step(tx, gradient, WORKERS))
  for t in range(90):
    state, params = step(jnp.int32(t), state, params)
    if t in (11, 23):  # Steps at which everything is averaged.
      adam = state.inner[0]
      assert rows_are_the_same((state.params, adam.mu, adam.nu))
      assert jax.tree.all(jax.tree.map(lambda x, y: bool((x[0] == y).all()), state.params, params))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before
  assert step._cache_size() == 1
  assert distance(params) < 0.2


@pytest.mark.parametrize('fsdp', [1, 2])
@pytest.mark.parametrize('name', ['params by int4', 'params by econtrol', 'everything'])
def test_over_devices_with_checked_types_as_in_a_vmap(name, fsdp):
  tx = transform(OF_QUANTITIES[name], outer=optax.sgd(0.7, momentum=0.5, nesterov=True))
  types = (AxisType.Auto,) * 2
  mesh = jax.make_mesh(
    (4, fsdp), ('workers', 'fsdp'), axis_types=types, devices=jax.devices()[: 4 * fsdp]
  )
  step = jax.jit(workers.make_manual_step(tx, gradient, mesh))
  state, params = workers.init(tx, PARAMS, WORKERS), PARAMS
  for t, (expected, _) in enumerate(workers.run(tx, PARAMS, gradient, WORKERS, 3)):
    state, params = step(t, state, params)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, state.params, expected.params)
    assert rows_are_the_same(state.params) == (t == 1)


def test_a_broken_worker_leaves_no_trace_in_what_is_sent_and_remembers():
  def broken(t, worker, x):
    bad = (t == 2) & (worker == 1)
    return jax.tree.map(lambda g: jnp.where(bad, jnp.nan, g), gradient(t, worker, x))

  tx = transform(OF_QUANTITIES['everything'], health=HealthCheck())
  states = list(workers.run(tx, PARAMS, broken, WORKERS, 12))
  memory = [np.asarray(state.memory.own['params']['embed'][1]) for state, _ in states]
  np.testing.assert_array_equal(memory[3], memory[2])
  state, params = states[-1]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, params)))
  assert state.health.restarts.tolist() == [0, 1, 0, 0]


def as_all_reduce(ledger, name):
  """Bytes of the array whose ring all-reduce sends as much."""
  sent = ledger.ring_bytes(ledger.bytes_per_sync[name], name)
  return pytest.approx(sent * WORKERS / (2 * (WORKERS - 1)))


def test_bytes_are_those_of_the_encodings():
  block = {'int8': BLOCK + 4, 'int4': BLOCK // 2 + 4}
  tx = transform({'params': SYNCS['int8'], 'mu': SYNCS['int4'], 'nu': SYNCS['mean']})
  ledger = transform_ledger(tx, PARAMS, PERIODS, WORKERS)
  blocks = 4  # 62 numbers, in 16s: one for each worker.
  assert {name: as_all_reduce(ledger, name) for name in ledger.bytes_per_sync} == {
    'params': blocks * block['int8'],
    'mu': blocks * block['int4'],
    'nu': SIZE,
  }


def test_bytes_of_what_each_worker_sends_to_every_other():
  ledger = transform_ledger(transform({'params': SYNCS['topk']}), PARAMS, PERIODS, WORKERS)
  message = 4 * (8 * 4 // 8 + 8 * 2 // 8 + 4 * 4)
  assert ledger.ring_bytes(ledger.bytes_per_sync['params'], 'params') == (WORKERS - 1) * message


def test_without_a_memory_there_is_none_in_the_state():
  state = workers.init(transform({'params': syncs.mean()}), PARAMS, WORKERS)
  assert not jax.tree.leaves(state.memory)


def test_a_sync_of_what_is_not_averaged_is_refused():
  with pytest.raises(ValueError, match='syncs names trace, which periods does not average'):
    transform({'trace': SYNCS['int8']})
