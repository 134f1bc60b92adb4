"""Methods whose settings are those of a paper: what they become, and what a run may set otherwise."""

import jax
import numpy as np
import optax
import pytest

from desloc_jax.checkpoints.segment import BEGINNING, make_clock
from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.errors import UserError
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.optimizer.outer import make_outer, momentum_schedule
from desloc_jax.optimizer.over_workers import AXIS_NAMES
from desloc_jax.options.checks import check_config
from desloc_jax.options.table import default_config
from desloc_jax.options.values import with_presets
from desloc_jax.programs.ledger import transform_ledger
from desloc_jax.train.resume.restore import begin_or_go_on
from desloc_jax.train.setup.build_optimizer import make_optimizer
from tests.runs import losses, small_config, train_on_two as train

PARAMS = {'w': jax.ShapeDtypeStruct((64, 64), np.float32)}
SIZE = 4 * 64 * 64
PRESETS = (
  'edit',
  'byz_nsgdm',
  'muloco',
  'sparseloco',
  'merge_once',
  'co2',
  'eager',
  'gossip',
  'scaffold',
  'streaming_diloco',
)


def config_of(**options):
  config = default_config()
  config.steps = 96
  config.update_from_flattened_dict(options)
  return config


def optimizer_of(**options):
  config = config_of(**options)
  check_config(config)
  return make_optimizer(config, PARAMS, make_clock(config, BEGINNING))


# Bytes of an average, as the array whose ring all-reduce over four workers sends as much.
BYTES = {
  'edit': SIZE + 4 + 4,  # The shortest length, and the sum of the weights.
  'byz_nsgdm': SIZE + 4 * 4 * 5,  # Lengths between workers.
  'muloco': SIZE,
  'sparseloco': 2 * (64 * 12 // 8 + 64 * 2 // 8 + 16),  # To 3 others: twice the factor of a ring.
  'merge_once': SIZE,
  'co2': SIZE,
  'eager': SIZE,
  'gossip': (SIZE + 4) / 1.5,  # One model and a weight, to one other.
  'scaffold': SIZE,
  'streaming_diloco': SIZE / 8 + 4 * 16,  # And a scale for each 256 numbers.
}


# What else is sent, a whole model, and how often.
BESIDE = {'gossip': {'consensus': 64}, 'scaffold': {'control': 16}}


@pytest.mark.parametrize('method', PRESETS)
def test_a_row_of_the_ledger_for_each(method):
  made = optimizer_of(**{'method': method, 'health.check': False})
  ledger = transform_ledger(made.tx, PARAMS, made.quantities, 4, AXIS_NAMES)
  names = [f'params-{i}' for i in range(4)] if method == 'streaming_diloco' else ['params']
  assert {*ledger.bytes_per_sync} == {*names, *BESIDE.get(method, {})}
  assert ledger.periods[names[0]] == (96 if method == 'merge_once' else 16)
  sent = sum(ledger.ring_bytes(ledger.bytes_per_sync[name], name) for name in names) / 1.5
  assert sent == pytest.approx(BYTES[method])
  for name, period in BESIDE.get(method, {}).items():
    assert ledger.bytes_per_sync[name] == SIZE and ledger.periods[name] == period


def program(**options):
  """Returns what an optimizer computes, as text."""
  tx = optimizer_of(**{'health.check': False} | options).tx
  step = lambda params: tx.update(params, tx.init(params), params)
  return str(jax.make_jaxpr(step, axis_env=list(zip(AXIS_NAMES, (4, 1), strict=True)))(PARAMS))


def test_streaming_at_once_in_one_fragment_is_diloco():
  plain = {
    'sync.fragments': 1, 'sync.delay': 0, 'sync.params': 'mean', 'sync.local_share': 0.0,
    'outer.learning_rate': 0.7,
  }  # fmt: skip
  assert program(method='streaming_diloco', **plain) == program(method='diloco')
  syncs = with_presets(config_of(method='streaming_diloco', **{'periods.params': 100}), 'sync')
  assert (syncs['fragments'], syncs['delay']) == (4, 5)
  syncs = with_presets(config_of(method='streaming_diloco', **{'periods.params': 3}), 'sync')
  assert (syncs['fragments'], syncs['delay']) == (3, 0)


@pytest.mark.parametrize('method', ['co2', 'eager'])
def test_what_lands_late_is_diloco_without_a_delay(method):
  assert program(method=method, **{'sync.delay': 0}) == program(method='diloco')
  assert program(method=method) != program(method='diloco')
  assert with_presets(config_of(method=method, **{'periods.params': 6}), 'sync')['delay'] == 5


def test_what_a_run_sets_is_its_own():
  config = default_config()
  config.method = 'edit'
  assert with_presets(config, 'outer')['momentum'] == 0.8
  config.outer.momentum = 0.5
  config.sync.params = 'int8'
  assert with_presets(config, 'outer')['momentum'] == 0.5
  assert with_presets(config, 'sync')['params'] == 'int8'
  for name, method in METHODS.items():
    for option in method.options:
      group, _, key = option.partition('.')
      assert default_config()[group][key] is None, (name, option)


def test_a_normalised_step_has_the_length_that_its_number_gives():
  tx, params = make_outer('normalised', learning_rate=3.0), {'w': np.zeros(4, np.float32)}
  state = tx.init(params)
  for t in range(1, 4):
    updates, state = tx.update({'w': np.full(4, 10.0**t, np.float32)}, state, params)
    np.testing.assert_allclose(updates['w'], -3 / np.sqrt(t) / 2, rtol=1e-6)


def test_momentum_rises_and_falls():
  """Of ten outer steps two rise and five fall: .45 .9 .9 .9 .9 .72 .54 .36 .18 0."""
  schedule = momentum_schedule(0.9, 10, 0.2, 0.5)
  found = [float(schedule(t)) for t in range(10)]
  expected = [0.45, 0.9, 0.9, 0.9, 0.9, 0.72, 0.54, 0.36, 0.18, 0.0]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  tx, plain = make_outer('sgd', momentum=schedule), make_outer('sgd', momentum=0.9)
  grads = params = {'w': np.ones(2, np.float32)}
  steps, states = [], [tx.init(params), plain.init(params)]
  for _ in range(2):
    results = [t.update(grads, s, params) for t, s in zip((tx, plain), states, strict=True)]
    states = [state for _, state in results]
    steps.append([float(updates['w'][0]) for updates, _ in results])
  np.testing.assert_allclose(steps[0], [-0.7 * 1.45, -0.7 * 1.9], rtol=1e-6)
  np.testing.assert_allclose(steps[1], [-0.7 * (1 + 0.9 * 1.9)] * 2, rtol=1e-6)


def test_an_outer_optimizer_of_optax_by_its_name():
  params = {'w': np.zeros(3, np.float32)}
  for ours, theirs in ((make_outer('lion', learning_rate=0.1), optax.lion(0.1)),):
    grads = {'w': np.array([1.0, -2.0, 0.0], np.float32)}
    np.testing.assert_array_equal(
      ours.update(grads, ours.init(params), params)[0]['w'],
      theirs.update(grads, theirs.init(params), params)[0]['w'],
    )


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'outer.name': 'nadam2'}, "outer.name is 'nadam2'; expected sgd, normalised or an optimizer"),
    ({'outer.name': 'chain'}, "outer.name is 'chain'; expected"),
    ({'outer.name': 'adam', 'outer.momentum': 0.5}, 'outer.momentum is set, but .* adam does not'),
    ({'method': 'byz_nsgdm', 'outer.nesterov': True}, 'outer.nesterov is set, but .* normalised'),
    ({'method': 'byz_nsgdm', 'workers': 2}, '1 of 2 workers may lie'),
    ({'sync.who': 'fedstale', 'sync.params': 'krum', 'sync.byzantine': 1}, 'parts of a sum, but'),
    ({'sync.who': 'fedstale', 'worker_weights': (1, 2, 1, 1)}, 'all workers count the same'),
    ({'method': 'merge_once', 'timing': 'pre'}, "'merge_once' averages once, after the last step"),
    ({'sync.who': 'tokens'}, 'sync.who is tokens, but health.check is on'),
    ({'method': 'gossip', 'workers': 6}, '6 workers are not; expected a power of two, 4 or 8'),
    ({'sync.params': 'gossip'}, "method 'diloco' needs a consensus"),
    ({'method': 'scaffold', 'sync.control': 'krum'}, 'krum cannot send control variates'),
    ({'sync.control': 'int8'}, 'does not average control'),
    ({'sync.who': 'fedau', 'method': 'ddp'}, "sync.who is 'fedau', but method 'ddp'"),
  ],
)
def test_what_cannot_work_is_refused(options, message):
  with pytest.raises(UserError, match=message):
    optimizer_of(**{'method': 'diloco'} | options)


@pytest.mark.parametrize('method', PRESETS)
def test_a_run_of_each_resumes_bit_for_bit_and_goes_on_with_other_workers(method, text, tmp_path):
  options = {'method': method, 'model.layers': 1, 'model.width': 16}
  options |= {'periods.params': 8} if method == 'streaming_diloco' else {}
  options['health.check'] = method == 'sparseloco'  # A step compiles in half the time without.
  config = lambda **more: small_config(text, **options, **more)
  through = train(config(), tmp_path / 'through')
  train(config(stop_at=7), tmp_path / 'halves')
  resumed = train(config(), tmp_path / 'halves')
  assert losses(tmp_path / 'halves') == losses(tmp_path / 'through')
  assert through['val_loss'] == resumed['val_loss']
  assert through['bytes_per_worker'] == resumed['bytes_per_worker'] > 0
  checkpoints = Checkpoints(tmp_path / 'halves' / 'checkpoints', 2)
  more = config(workers=8, steps=20, **{'restore.allow': 'schedule'})
  try:
    job, state, step, _ = begin_or_go_on(more, jax.devices()[:2], checkpoints)
  finally:
    checkpoints.close()
  assert step == 12 and job.config.workers == 8
  of_workers = jax.tree.leaves((state.params, state.optimizer.params, state.optimizer.memory))
  assert all(np.isfinite(x).all() for x in of_workers)
