"""Equivalences, exactness and errors of the transform."""

import doctest

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import optax
import pytest

from desloc_jax import desloc, HealthCheck, synced, WORKER_AXES
from desloc_jax.optimizer import own_loop, sync_periods as periods_lib, transform
from desloc_jax.optimizer.ddp import ddp
from desloc_jax.optimizer.worker_step.triggers import due_now
from tests import workers
from tests.adam_workers import ADAM, adam_periods, gradient, last, PARAMS

NESTEROV = optax.sgd(0.7, momentum=0.9, nesterov=True)


def bits(tree):
  return [np.asarray(x).view(np.uint32) for x in jax.tree.leaves(tree) if x.dtype == jnp.float32]


def assert_same_bits(a, b):
  for x, y in zip(bits(a), bits(b), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('module', [transform, periods_lib, own_loop])
def test_docstring_examples(module):
  result = doctest.testmod(module)
  assert result.attempted and not result.failed


@pytest.mark.parametrize('outer', [None, NESTEROV], ids=['averaging', 'nesterov'])
def test_a_sync_leaves_all_workers_with_the_bits_of_the_consensus(outer):
  tx = desloc(ADAM, adam_periods(3, 4, 6), outer=outer)
  for t, (state, consensus) in enumerate(workers.run(tx, PARAMS, gradient, 4, 12)):
    synced = (t + 1) % 3 == 0
    for worker in range(4):
      same = all(
        np.array_equal(x[worker], y)
        for x, y in zip(bits(state.params), bits(consensus), strict=True)
      )
      assert same == synced
    mu, nu = state.inner[1][0].mu['w'], state.inner[1][0].nu['w']
    assert bool((mu == mu[0]).all()) == ((t + 1) % 4 == 0)
    assert bool((nu == nu[0]).all()) == ((t + 1) % 6 == 0)


def test_counters_count_steps_since_each_sync():
  tx = desloc(ADAM, adam_periods(2, 3, None))
  seen = [
    {name: int(c) for name, c in state.counters.items()}
    for state, _ in workers.run(tx, PARAMS, gradient, 2, 6)
  ]
  assert [s['params'] for s in seen] == [1, 0, 1, 0, 1, 0]
  assert [s['mu'] for s in seen] == [1, 2, 0, 1, 2, 0]
  assert 'nu' not in seen[0]


def test_updates_are_zero_between_parameter_syncs():
  tx = desloc(ADAM, adam_periods(5, 5, 5))
  consensus = [params for _, params in workers.run(tx, PARAMS, gradient, 4, 5)]
  for params in consensus[:4]:
    assert_same_bits(params, PARAMS)
  assert not np.array_equal(consensus[4]['w'], PARAMS['w'])


def test_sgd_with_period_one_is_ddp():
  local, _ = last(desloc(optax.sgd(0.1), {'params': 1}))
  _, shared = last(ddp(optax.sgd(0.1)))
  for x, y in zip(jax.tree.leaves(local.params), jax.tree.leaves(shared), strict=True):
    np.testing.assert_allclose(x[0], y, rtol=2e-6, atol=1e-7)


def test_momentum_with_period_one_is_ddp():
  inner = optax.sgd(0.1, momentum=0.9)
  local, _ = last(desloc(inner, {'params': 1, 'trace': 1}))
  _, shared = last(ddp(inner))
  for x, y in zip(jax.tree.leaves(local.params), jax.tree.leaves(shared), strict=True):
    np.testing.assert_allclose(x[0], y, rtol=5e-6, atol=1e-6)


def test_equal_periods_are_local_adam():
  """Local Adam, written here without the transform: K local steps, then everything is averaged."""
  period, inner = 4, optax.adam(0.03)
  state, _ = last(desloc(inner, adam_periods(period, period, period)))

  params = jax.tree.map(lambda x: jnp.stack([x] * 4), PARAMS)
  inner_state = jax.vmap(inner.init)(params)
  for t in range(12):
    grads = jax.vmap(lambda w, x, t=t: gradient(t, w, x))(jnp.arange(4), params)
    updates, inner_state = jax.vmap(inner.update)(grads, inner_state, params)
    params = optax.apply_updates(params, updates)
    if (t + 1) % period == 0:
      average = lambda x: jnp.broadcast_to(x.mean(0), x.shape)  # noqa: E731
      params = jax.tree.map(average, params)
      adam = inner_state[0]
      adam = adam._replace(mu=jax.tree.map(average, adam.mu), nu=jax.tree.map(average, adam.nu))
      inner_state = (adam, *inner_state[1:])
  for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def test_no_periods_are_independent_workers():
  state, consensus = last(desloc(ADAM, adam_periods(None, None, None)))
  assert_same_bits(consensus, PARAMS)
  for worker in range(4):
    alone = lambda t, _, x, worker=worker: gradient(t, worker, x)  # noqa: E731
    *_, (_, params) = workers.run(ddp(ADAM), PARAMS, alone, 1, 12)
    for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
      np.testing.assert_allclose(x[worker], y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('timing', ['post', 'pre'])
@pytest.mark.parametrize('period', [1, 3])
def test_one_worker_is_the_inner_optimizer_bit_for_bit(period, timing):
  """Operation by operation: two programs that XLA fuses differently round differently."""
  tx = desloc(ADAM, adam_periods(period, period, period), timing=timing)
  params = jax.tree.map(lambda x: x[None], PARAMS)
  inner_state = jax.vmap(ADAM.init)(params)
  trajectory = workers.run(tx, PARAMS, gradient, 1, 12, compiler=lambda step: step)
  for t, (state, _) in enumerate(trajectory):
    grads = jax.vmap(lambda m, x, t=t: gradient(t, m, x))(jnp.arange(1), params)
    updates, inner_state = jax.vmap(ADAM.update)(grads, inner_state, params)
    params = optax.apply_updates(params, updates)
    assert_same_bits(state.params, params)
    assert_same_bits(state.inner, inner_state)


def test_outer_sgd_with_rate_one_is_averaging():
  averaged, _ = last(desloc(ADAM, adam_periods(3, 6, 9)))
  stepped, _ = last(desloc(ADAM, adam_periods(3, 6, 9), outer=optax.sgd(1.0)))
  assert_same_bits(averaged.params, stepped.params)


def test_drift_is_the_relative_distance_from_the_mean():
  tx = desloc(optax.sgd(0.1), {'params': 2})
  before = None
  for t, (state, _) in enumerate(workers.run(tx, {'w': PARAMS['w']}, gradient, 4, 2)):
    if t == 0:
      before = np.asarray(state.params['w'], np.float64)
  stepped = np.stack(
    [
      x - 0.1 * np.asarray(gradient(1, m, {'w': jnp.asarray(x, jnp.float32)})['w'])
      for m, x in enumerate(before)
    ]
  )
  mean = stepped.mean(axis=0)
  expected = np.linalg.norm(stepped - mean, axis=1) / np.linalg.norm(mean)
  np.testing.assert_allclose(state.drift['params'], expected, rtol=1e-4)


def test_nothing_recompiles():
  tx = desloc(ADAM, adam_periods(2, 3, 5))
  state, params = workers.init(tx, PARAMS, 4), PARAMS
  step = jax.jit(workers.make_step(tx, gradient, 4))
  for t in range(6):
    state, params = step(jnp.int32(t), state, params)
  assert step._cache_size() == 1


def test_extra_arguments_reach_the_inner_optimizer():
  def update(grads, state, params=None, *, scale, **_):
    return jax.tree.map(lambda g: -scale * g, grads), state

  inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
  tx = desloc(inner, {'params': 1})
  state = workers.init(tx, {'w': jnp.ones(2)}, 2)
  update_all = jax.vmap(
    lambda g, s, p: tx.update(g, s, p, scale=0.5),
    in_axes=(0, WORKER_AXES, None),
    out_axes=(None, WORKER_AXES),
    axis_name='workers',
  )
  updates, _ = update_all({'w': jnp.ones((2, 2))}, state, {'w': jnp.ones(2)})
  np.testing.assert_allclose(updates['w'], -0.5)


@pytest.mark.parametrize('outer', [None, NESTEROV], ids=['averaging', 'nesterov'])
def test_types_of_varying_axes_are_right_under_checking(outer):
  """Inside shard_map with check_vma=True, one worker a device, against the vmapped form."""
  tx = desloc(ADAM, adam_periods(2, 3, 5), outer=outer)
  mesh = jax.make_mesh((4,), ('workers',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
  step = jax.jit(workers.make_manual_step(tx, gradient, mesh))
  state, params = workers.init(tx, PARAMS, 4), PARAMS
  for t, (expected, _) in enumerate(workers.run(tx, PARAMS, gradient, 4, 6)):
    state, params = step(t, state, params)
    for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  assert_same_bits(jax.tree.map(lambda x: x[2], state.params), params)


@pytest.mark.parametrize('timing', ['post', 'pre'])
def test_an_outer_optimizer_may_compute_in_a_wider_dtype(timing):
  params = {'w': jnp.ones(4, jnp.bfloat16)}
  outer = optax.sgd(0.7, momentum=0.9, accumulator_dtype=jnp.float32)
  tx = desloc(optax.sgd(0.1), {'params': 2}, outer=outer, timing=timing)
  *_, (state, consensus) = workers.run(tx, params, gradient, 2, 4)
  assert state.params['w'].dtype == consensus['w'].dtype == jnp.bfloat16


def syncs_of(tx, steps, count=3, params=PARAMS):
  """Returns by step the names of what `synced` says was averaged."""
  before, found = workers.init(tx, params, count), []
  for state, _ in workers.run(tx, params, gradient, count, steps):
    found.append({name for name, was in synced(before, state).items() if was})
    before = state
  return found


@pytest.mark.parametrize('timing', ['post', 'pre'])
@pytest.mark.parametrize('warmup', [1, 2, 3])
def test_synced_tells_of_every_step_of_a_warm_up(timing, warmup):
  tx = desloc(ADAM, adam_periods(3, 6, None), timing=timing, warmup_steps=warmup)
  found = syncs_of(tx, 12)
  # 'post': 3 steps after the last one of the warm-up; 'pre': before the step that follows those.
  regular = {warmup - 1 + k: {'params', 'mu'} if k == 6 else {'params'} for k in (3, 6, 9)}
  expected = [{'params', 'mu', 'nu'} if t < warmup else regular.get(t, set()) for t in range(12)]
  assert found == expected


@pytest.mark.parametrize('timing', ['post', 'pre'])
def test_synced_tells_of_every_coin(timing):
  periods, key = adam_periods(2, 2, 2), jax.random.key(1)
  zero = dict.fromkeys(periods, jnp.int32(0))
  coins = [due_now(periods, zero, jnp.int32(t), key, 0, t) for t in range(12)]
  expected = [{name for name, now in coin.items() if now} for coin in coins]
  assert expected[0]  # Some at the very first step.
  assert syncs_of(desloc(ADAM, periods, timing=timing, coin_key=key), 12) == expected


def test_synced_tells_of_a_period_of_one():
  ones = adam_periods(1, 1, 1)
  everything = [{'params', 'mu', 'nu'}] * 5
  assert syncs_of(desloc(ADAM, ones), 5) == everything
  assert syncs_of(desloc(ADAM, ones, timing='pre'), 5) == [
    set(),
    *everything[1:],
  ]  # From step 1 on.


def test_an_update_at_the_first_step_is_applied():
  """An outer optimizer that moves the consensus also where all workers agree with it."""
  key = next(k for k in map(jax.random.key, range(9)) if jax.random.bernoulli(
    jax.random.fold_in(jax.random.fold_in(k, 0), 0), 1 / 2))  # fmt: skip
  outer = optax.chain(optax.add_decayed_weights(0.5), optax.scale(-1.0))
  tx = desloc(optax.sgd(0.1), {'params': 2}, outer=outer, timing='pre', coin_key=key)
  (state, params), *_ = workers.run(tx, PARAMS, gradient, 2, 1)
  np.testing.assert_allclose(params['w'], 0.5 * PARAMS['w'], rtol=1e-6)
  assert state.counters['params'] == -1


# Donation.

TRANSFORMS = {
  'adam': lambda: desloc(ADAM, adam_periods(2, 4, 4)),
  'adam, health': lambda: desloc(ADAM, adam_periods(2, 4, 4), health=HealthCheck()),
  'outer nesterov': lambda: desloc(ADAM, adam_periods(2, 4, 4), outer=NESTEROV),
  'outer dog': lambda: desloc(ADAM, adam_periods(2, 4, 4), outer=optax.contrib.dog(1.0)),
  'inner dog': lambda: desloc(optax.contrib.dog(1.0), {'params': 2, 'init_params': None}),
  'inner prodigy': lambda: desloc(
    optax.contrib.prodigy(1.0),
    {'params': 2, **dict.fromkeys(('exp_avg', 'exp_avg_sq', 'grad_sum', 'params0'))},
  ),
  'noise': lambda: desloc(optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)),
                                      optax.sgd(0.1)), {'params': 2}),
  'ddp dog': lambda: ddp(optax.contrib.dog(1.0)),
  'ddp adam': lambda: ddp(ADAM),
}  # fmt: skip


@pytest.mark.parametrize('name', TRANSFORMS)
def test_no_two_arrays_of_the_first_state_are_one(name):
  tx, params = TRANSFORMS[name](), jax.tree.map(jnp.copy, PARAMS)
  alone = tx.init(params)
  buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, alone))
             if jnp.issubdtype(x.dtype, jnp.number)]  # fmt: skip
  assert len(set(buffers)) == len(buffers)
  state = workers.init(tx, params, 2)
  step = jax.jit(workers.make_step(tx, gradient, 2), donate_argnums=(1, 2))
  for t in range(3):
    state, params = step(t, state, params)
  assert np.isfinite(params['w']).all()


def test_parameters_that_are_not_floating_are_refused():
  params = {'w': jnp.ones(3), 'table': [jnp.arange(3)]}
  for tx in (desloc(optax.sgd(0.1), {'params': 1}), ddp(optax.sgd(0.1))):
    with pytest.raises(ValueError, match=r"params\['table'\]\[0\] is int32; expected floating"):
      tx.init(params)
