"""Fragments in a run: options, bytes, restarts with a part in flight."""

import jax
import numpy as np
import pytest

from desloc_jax.checkpoints.leaves import named_leaves
from desloc_jax.checkpoints.segment import BEGINNING, make_clock
from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.options.checks import check_config
from desloc_jax.train.resume.restore import begin_or_go_on
from desloc_jax.train.setup.build_optimizer import make_optimizer
from experiments.several import kill, start, wait_for_step
from tests.runs import losses, small_config, train_on_two as train

# Sent at 3, 6, 9, ... in turn; it lands two steps later: at 7 and 12 something is in flight.
OPTIONS = {
  'periods.params': 6, 'periods.mu': 6, 'periods.nu': 12, 'sync.fragments': 2, 'sync.delay': 2,
  'sync.params': 'int4', 'sync.nu': 'int8', 'sync.block': 64, 'model.layers': 2, 'model.width': 16,
}  # fmt: skip
FLIGHT = 'optimizer.flight.'


def restored(folder, text, workers, **more):
  """Returns what of a run's newest checkpoint is in flight when it goes on, and the state."""
  config = small_config(text, workers=workers, **OPTIONS | {'steps': 20} | more)
  config.restore.allow = 'schedule,sync'
  checkpoints = Checkpoints(folder / 'checkpoints', 2)
  try:
    _, state, _, _ = begin_or_go_on(config, jax.devices()[:2], checkpoints)
  finally:
    checkpoints.close()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.optimizer.params)))
  leaves = named_leaves(state).items()
  return {n.removeprefix(FLIGHT): np.asarray(x) for n, x in leaves if n.startswith(FLIGHT)}


def test_a_run_resumes_and_goes_on_with_other_workers_while_a_part_is_in_flight(text, tmp_path):
  through = train(small_config(text, **OPTIONS), tmp_path / 'through')
  train(small_config(text, stop_at=7, **OPTIONS), tmp_path / 'halves')
  before, after = (restored(tmp_path / 'halves', text, workers) for workers in (4, 2))
  assert {n: int(x) for n, x in before.items() if n.startswith('left.') and x} == {
    'left.params-1': 1, 'left.mu-1': 1, 'left.nu-0': 1,
  }  # fmt: skip
  assert before.keys() == after.keys()
  for name, value in after.items():
    like = before[name]
    if name.startswith('sent.'):
      like = np.broadcast_to(like.mean(axis=0), value.shape)
    np.testing.assert_allclose(value, like, rtol=1e-5, atol=1e-8)
  # Its place is another one, which all lack then: nothing is in flight.
  found = restored(tmp_path / 'halves', text, 4, **{'sync.delay': 3})
  assert not any(np.any(value) for value in found.values())
  resumed = train(small_config(text, **OPTIONS), tmp_path / 'halves')
  assert losses(tmp_path / 'halves') == losses(tmp_path / 'through')
  assert through['bytes_per_worker'] == resumed['bytes_per_worker'] > 0
  lines = [line for line in read_metrics(tmp_path / 'halves') if 'loss' in line]
  events = {
    name: [[x['step'] for x in lines if f'params-{part}' in x[name]] for part in range(2)]
    for name in ('synced', 'landed')
  }
  assert events == {'synced': [[3, 9], [6, 12]], 'landed': [[5, 11], [8, 12]]}


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_with_other_workers_and_lands_what_was_in_flight(
  text, tmp_path
):
  options = {
    **OPTIONS, 'batch_size': 2, 'seq_len': 32, 'steps': 400, 'model.heads': 2, 'log_every': 1,
    'checkpoint.every': 6, 'checkpoint.keep': 9, 'eval.sequences': 8, 'eval.every': 0,
    'schedule.warmup_steps': 2, 'data.validation_fraction': 0.2, 'data.sources.text.path': text,
    'inner.learning_rate': 3e-3, 'schedule.decay_fraction': 0.1,
  }  # fmt: skip
  started = start(4, tmp_path / 'run', options, 1)
  wait_for_step(tmp_path / 'run', 30, started)
  kill(started)
  checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints', 9)
  step = max(checkpoints.steps())
  checkpoints.close()
  found = restored(tmp_path / 'run', text, 8, steps=400, **{'eval.sequences': 8})
  in_flight = {
    name.removeprefix('left.') for name, left in found.items() if name.startswith('left.') and left
  }
  # Of each six steps the second part is sent after the last.
  assert step % 6 == 0 and {'params-1', 'mu-1'} <= in_flight
  config = small_config(text, workers=8, **OPTIONS | {'steps': 400, 'eval.sequences': 8})
  config.stop_at = step + 3
  train(config, tmp_path / 'run')
  lines = {line['step']: line for line in read_metrics(tmp_path / 'run') if 'loss' in line}
  assert in_flight == {*lines[step + 2]['landed']} and len(lines[step + 2]['losses']) == 8
  assert np.isfinite(losses(tmp_path / 'run')).all()


PARAMS = {'blocks': {'up': jax.ShapeDtypeStruct((4, 64, 8), np.float32)},
          'embedding': jax.ShapeDtypeStruct((64, 64), np.float32)}  # fmt: skip


def quantities(**options):
  config = small_config('sotu', steps=96, **options)
  check_config(config)
  return make_optimizer(config, PARAMS, make_clock(config, BEGINNING)).quantities


def test_a_group_has_periods_of_its_own():
  found = quantities(**{'periods.groups': 'rare=embed:9', 'sync.fragments': 3})
  assert found['params-rare'] == 9 and found['mu-rare'] == 27 and found['nu-rare'] == 54
  assert [(int(p), p.early) for n, p in found.items() if n.startswith('params')] == [
    (9, 0), (3, 2), (3, 1), (3, 0),
  ]  # fmt: skip
  assert {*quantities(**{'periods.groups': 'rare=embed:9', 'method': 'diloco'})} == {
    f'{field}-{part}' for field in ('params', 'mu', 'nu') for part in ('rare', '0')
  }
  assert {*quantities(method='ddp', **{'periods.groups': 'rare=embed:9'})} == {'params', 'mu', 'nu'}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'sync.fragments': 4}, r'sync.fragments is 4, but there are 3 steps .* at most 3'),
    ({'sync.fragments': 0}, 'sync.fragments is 0; expected'),
    ({'sync.fragments': 70, 'periods.params': 96}, '70 parts are more than any array has rows'),
    ({'sync.fragments': 2, 'method': 'gossip'}, 'sync.params is gossip, by which workers do not'),
    ({'sync.fragments': 2, 'method': 'scaffold'}, "method 'scaffold' corrects gradients"),
    ({'sync.fragments': 2, 'method': 'favg_reset'}, "method 'favg_reset' resets moments"),
    ({'sync.fragments': 2, 'method': 'merge_once'}, "method 'merge_once' averages once"),
    ({'sync.fragments': 2, 'period_growth': 2.0}, 'period_growth is 2, and what changes'),
    ({'sync.fragments': 2, 'sync_end_steps': 3}, 'sync_end_steps is 3, and what changes'),
    ({'sync.fragments': 2, 'sync.pattern': 'random'}, 'sync.pattern'),
    ({'periods.groups': 'embedding'}, "periods.groups has 'embedding'; expected NAME=PATHS:STEPS"),
    ({'periods.groups': 'a=embed:9, a=up:3'}, 'periods.groups has a twice'),
    ({'periods.groups': 'a=(:9'}, r"periods.groups has '\(', no regular expression"),
    (
      {'periods.groups': 'a=router:9'},
      "'router' of the group a is in none of blocks.up, embedding",
    ),
  ],
)
def test_what_cannot_be_in_fragments_is_refused(options, message):
  with pytest.raises(UserError, match=message):
    quantities(**options)
