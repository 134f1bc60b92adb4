"""Fragments: parts of the model that are averaged by themselves."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import optax
import pytest

from desloc_jax import desloc, HealthCheck, landed, synced
from desloc_jax.optimizer.fragments import cut, Fragment, Rows
from desloc_jax.optimizer.over_workers import AXIS_NAMES
from desloc_jax.optimizer.sync_periods import Phased
from desloc_jax.optimizer.syncs import gossip, make_landing, mean, quantised
from desloc_jax.programs.ledger import transform_ledger
from tests import problems, workers
from tests.adam_workers import ADAM, adam_periods, gradient
from tests.references import delays_reference
from tests.runs import same_bits

WORKERS, STEPS = 4, 40
PARAMS = {
  'blocks': {'norm': jnp.ones((4, 3)), 'up': jnp.linspace(-1.0, 1.0, 240).reshape(4, 6, 10)},
  'embedding': jnp.linspace(1.0, -1.0, 77).reshape(11, 7),
  'scale': jnp.float32(0.3),
}


def late(rule, delays, share=0.25, sync=mean):
  names = ('params', 'mu', 'nu')
  rules = (rule, *(('keep' if rule == 'eager' else rule,) * 2))
  return {
    name: sync()._replace(delay=delay, landing=make_landing(each, share, positive=name == 'nu'))
    for name, delay, each in zip(names, delays, rules, strict=True)
  }


# Rule, delays, outer optimizer, and whether one part has periods of its own. Steps between fragments
# are 2, 2 and 4, so that with delays of 1 they take turns in flight, and with others they do not.
SETTINGS = {
  'at once': ('overwrite', (0, 0, 0), None, False),
  'at once, a group': ('overwrite', (0, 0, 0), (0.7, 0.9), True),
  'mix in turn': ('mix', (1, 1, 1), (0.7, 0.9), False),
  'keep in turn, a group': ('keep', (1, 1, 3), None, True),
  'keep together': ('keep', (5, 3, 1), (0.7, 0.9), False),
  'eager in turn': ('eager', (1, 1, 2), (0.7, 0.9), False),
}


@pytest.mark.parametrize('pattern', ['strided', 'consecutive'])
@pytest.mark.parametrize('name', SETTINGS)
def test_trajectories_are_those_of_the_reference(name, pattern):
  rule, delays, outer, has_group = SETTINGS[name]
  of_all, of_worker, x0 = problems.quadratic(WORKERS, STEPS)
  group = {'rare': ('b', {'params': 10, 'mu': 5, 'nu': 20})} if has_group else {}
  params = {'a': x0[:5], 'b': x0[5:]} if has_group else {'a': x0}
  columns = np.arange(len(params['a']))
  ends = len(columns) * np.arange(4) // 3
  parts = [
    (
      columns[p::3] if pattern == 'strided' else columns[ends[p] : ends[p + 1]],
      (6, 6, 12),
      (4 - 2 * p, 4 - 2 * p, 8 - 4 * p),
    )
    for p in range(3)
  ]
  parts += [(np.array([5, 6]), (10, 5, 20), (0, 0, 0))] if has_group else []
  x, v, model = delays_reference.run(
    of_all, np.tile(x0, (WORKERS, 1)), STEPS, (6, 6, 12), delays, rule, share=0.25, outer=outer,
    last=outer is None, parts=parts,
  )  # fmt: skip

  def of_parts(t, worker, tree):
    flat = of_worker(t, worker, {'w': jnp.concatenate(list(tree.values()))})['w']
    return {'a': flat[: len(columns)], 'b': flat[len(columns) :]} if has_group else {'a': flat}

  whole = lambda tree: np.concatenate([np.asarray(leaf) for leaf in tree.values()], axis=-1)
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, params)
    tx = desloc(
      optax.adam(0.05), adam_periods(6, 6, 12), syncs=late(rule, delays),
      outer=outer and optax.sgd(outer[0], momentum=outer[1], nesterov=True),
      last_step=None if outer else STEPS, fragments=cut(params, 3, pattern, group),
    )  # fmt: skip
    run = workers.run(tx, params, of_parts, WORKERS, STEPS, move=workers.by_step)
    for t, (state, consensus) in enumerate(run):
      np.testing.assert_allclose(whole(state.params), x[t], rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(whole(state.inner[0].nu), v[t], rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(whole(consensus), model[t], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('options', [
  {}, {'outer': optax.sgd(0.7, momentum=0.9, nesterov=True)}, {'timing': 'pre'},
  {'health': HealthCheck()}, {'coin_key': jax.random.key(1)}, {'syncs': late('keep', (2, 2, 3))},
], ids=['averaging', 'nesterov', 'pre', 'health', 'coins', 'late'])  # fmt: skip
def test_one_fragment_is_the_whole_model_to_the_bit(options):
  make = lambda **more: desloc(ADAM, adam_periods(3, 4, 6), **options, **more)
  plain, one = (
    workers.run(tx, PARAMS, gradient, 4, 13, workers.jit_as_users)
    for tx in (make(), make(fragments=cut(PARAMS, 1)))
  )
  for pair in zip(plain, one, strict=True):
    assert same_bits(*map(jax.tree.leaves, pair))


def test_over_devices_with_checked_types_as_in_a_vmap_and_by_update_as_by_step():
  tx = desloc(
    ADAM, adam_periods(4, 4, 8), outer=optax.sgd(0.7, momentum=0.9), health=HealthCheck(),
    syncs=late('keep', (1, 1, 1), sync=lambda: quantised(16)), fragments=cut(PARAMS, 2),
  )  # fmt: skip
  mesh = jax.make_mesh((4,), ('workers',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
  step = jax.jit(workers.make_manual_step(tx, gradient, mesh, workers.by_step))
  state, params = workers.init(tx, PARAMS, 4), PARAMS
  for t, (expected, model) in enumerate(workers.run(tx, PARAMS, gradient, 4, 6)):
    state, params = step(t, state, params)
    for found, wanted in ((state.params, expected.params), (params, model)):
      for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_the_link_carries_a_part_at_a_time():
  shapes = jax.eval_shape(lambda: {'w': jnp.zeros((8, 100)), 'b': jnp.zeros(16)})
  most = {}
  for parts in (1, 4):
    fragments = cut(shapes, parts)
    tx = desloc(ADAM, adam_periods(16, 48, 96), AXIS_NAMES, fragments=fragments)
    periods = {
      f'{field}-{name}': Phased(period, round(period * fragment.phase))
      for name, fragment in fragments.items()
      for field, period in adam_periods(16, 48, 96).items()
    }
    ledger = transform_ledger(tx, shapes, periods, 4, AXIS_NAMES)
    sent = ledger.ring_bytes_by_step(96)
    assert sent.sum() == 1.5 * 4 * 816 * (6 + 2 + 1)
    most[parts] = sent.max()
    assert most[parts] == ledger.most_ring_bytes
  assert most[1] == 1.5 * 4 * 816 * 3 == 4 * most[4]


def test_a_fragment_is_in_flight_not_a_model():
  """As the compiled step has it: what it takes, and what it needs beside that."""

  def bytes_of(parts, delay=1):
    fragments = cut(params, parts) if parts > 1 else None
    syncs = (
      {'params': mean()._replace(delay=delay, landing=make_landing('keep'))} if delay else None
    )
    tx = desloc(optax.sgd(0.1), {'params': 16}, syncs=syncs, fragments=fragments)
    step = jax.jit(workers.make_step(tx, gradient, 4, move=workers.by_step), donate_argnums=(1, 2))
    memory = step.lower(0, workers.init(tx, params, 4), params).compile().memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes

  params = {'w': jnp.zeros((8, 4096)), 'v': jnp.zeros((64, 512))}
  size = 5 * 4 * 2 * 8 * 4096  # Of what four workers sent, and what they agreed on.
  nothing, whole, part = bytes_of(1, delay=0), bytes_of(1), bytes_of(4)
  few = 200  # Counters.
  assert size <= whole[0] - nothing[0] < size + few
  assert size / 4 <= part[0] - nothing[0] < size / 4 + few
  assert sum(part) - sum(nothing) < 0.4 * (sum(whole) - sum(nothing))


def test_an_average_waits_for_one_that_came_late_and_is_in_its_place():
  """Nobody is there in steps 3 and 4: the first part is sent after step 5, and lands after step 7."""
  active = lambda t: {'active': jnp.ones(4, bool) & ((t < 2) | (t > 3))}
  tx = desloc(
    optax.sgd(0.1), {'params': 6}, syncs={'params': mean()._replace(delay=2)},
    fragments=cut({'w': jnp.zeros((2, 3))}, 2),
  )  # fmt: skip
  states = [workers.init(tx, {'w': jnp.zeros((2, 3))}, 4)]
  pull = lambda t, worker, x: {'w': x['w'] - worker}
  run = list(workers.run(tx, {'w': jnp.zeros((2, 3))}, pull, 4, 12, extra=active))
  states += [state for state, _ in run]
  sent, came = [], []
  for t, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True), start=1):
    sent += [(t, name) for name, was in synced(before, after).items() if was]
    came += [(t, name) for name, was in landed(before, after).items() if was]
  assert sent == [(5, 'params-0'), (8, 'params-1'), (11, 'params-0')]
  assert came == [(7, 'params-0'), (10, 'params-1')]
  assert run[6][1]['w'][0].all() and not run[6][1]['w'][1].any()
  assert run[9][1]['w'].all()


def test_a_worker_that_breaks_restarts_whole():
  """Also with what is in flight of another part."""
  broken = lambda t, worker, x: jax.tree.map(
    lambda g: jnp.where((t == 4) & (worker == 1), jnp.nan, g), gradient(t, worker, x)
  )
  for delays in ((0, 0, 0), (3, 3, 3)):
    tx = desloc(ADAM, adam_periods(4, 4, 8), syncs=late('keep', delays), health=HealthCheck(),
                fragments=cut(PARAMS, 2))  # fmt: skip
    run = list(workers.run(tx, PARAMS, broken, 4, 20))
    assert all(np.isfinite(x).all() for _, model in run for x in jax.tree.leaves(model))
    state = run[-1][0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.inner)))
    assert state.health.restarts.tolist() == [0, 1, 0, 0]


def test_every_number_is_cut_once():
  fragments = cut(PARAMS, 3, groups={'rare': ('embed', {'params': 9})})
  assert fragments['rare'].pieces == {'embedding': None}
  assert fragments['1'].pieces == {
    'blocks.norm': Rows(0, 1, None, 3),
    'blocks.up': Rows(0, 1, None, 3),
  }
  assert fragments['0'].pieces['scale'] is None  # Too small: in the first.
  assert [round(f.phase, 3) for f in fragments.values()] == [0, 0.667, 0.333, 0]
  assert cut(PARAMS, 5)['4'].pieces['blocks.up'] == Rows(1, 4, None, 5)  # It has four layers.
  assert cut(PARAMS, 2, 'consecutive')['1'].pieces['embedding'] == Rows(0, 5, 11, 1)


HALF = Fragment({'w': Rows(0, 0, 2, 1)})
REFUSED = {
  'a half': ({'fragments': {'a': HALF}}, r'w, \(4,\), is to be cut into fragments .* each row in one'),
  'a half twice': ({'fragments': {'a': HALF, 'b': HALF}}, 'each row in one of them'),
  'no parameter': ({'fragments': {'a': Fragment({'v': None})}}, 'has v, which is no parameter; there'),
  'a period of no field': (
    {'fragments': {'a': Fragment({'w': None}, {'nu': 3})}}, 'has a period of nu, which periods does not'),
  'schedules': ({'periods': {'params': lambda step: 4}}, 'are to be numbers of steps; that of params is'),
  'a longer delay than the period': (
    {'syncs': {'params': mean()._replace(delay=4)}}, 'params-0 cannot land 4 steps .* at most 3'),
  'gossip': (
    {'syncs': {'params': gossip()}, 'periods': {'params': 4, 'consensus': 8}},
    'what has another result on each worker, as params-0, cannot be'),
  'resets': (
    {'inner': optax.sgd(0.1, momentum=0.9), 'periods': {'params': 4, 'trace': None}, 'reset': ['trace']},
    'fields that are reset with the parameters, trace, cannot be'),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_fragments_that_cannot_be_are_refused(name):
  options, message = REFUSED[name]
  params = {'w': jnp.zeros(4)}
  arguments = {'inner': optax.sgd(0.1), 'periods': {'params': 4}, 'fragments': cut(params, 2)}
  with pytest.raises(ValueError, match=message):
    desloc(**arguments | options).init(params)


@pytest.mark.parametrize(('arguments', 'message'), [
  ((12,), '12 parts are more than any array has rows; expected at most 11'),
  ((2, 'strided', {'g': ('router', {})}), "'router' of the group g is in none of blocks.norm, "),
  ((2, 'strided', {'g': ('up', {}), 'h': ('blocks', {})}), 'blocks.up is in the groups g and h'),
])  # fmt: skip
def test_cuts_that_cannot_be_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    cut(PARAMS, *arguments)
