"""Restarts with other workers, devices or options."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from desloc_jax.checkpoints.leaves import LeafReader, named_leaves
from desloc_jax.checkpoints.store import Checkpoints, chunks
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.options.changes import changed_options
from desloc_jax.options.values import flatten
from desloc_jax.train.resume.restore import begin_or_go_on
from desloc_jax.train.step import finite_workers
from tests.environment import environment
from tests.runs import losses, same_bits, small_config, train_on_two as train

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def workdir(after_seven_steps):
  return after_seven_steps


def go_on(config, workdir, devices=None):
  """Returns (job, state by name, step, what was changed) without training."""
  devices = devices or jax.devices()[:2]
  checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoint.keep)
  try:
    job, state, step, changes = begin_or_go_on(config, devices, checkpoints)
  finally:
    checkpoints.close()
  return job, named_leaves(state), step, changes


def saved(workdir, step=7):
  """Returns the arrays of a checkpoint by name, in NumPy."""
  folder = workdir / 'checkpoints' / str(step) / 'state'
  reader = LeafReader(folder)
  checkpoints = Checkpoints(workdir / 'checkpoints', 2)
  shapes = checkpoints.leaves(step)
  checkpoints.close()
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)
  return {name: np.asarray(reader.read(name, like(x))) for name, x in shapes.items()}


@pytest.mark.parametrize(('workers', 'devices'), [(1, 1), (1, 2), (2, 4), (3, 6), (6, 2), (8, 8)])
def test_another_number_of_workers_begins_with_the_mean_of_the_old(text, workdir, workers, devices):
  before = saved(workdir)
  config = small_config(text, workers=workers)
  job, state, step, changes = go_on(config, workdir, jax.devices()[:devices])
  assert step == 7 and f'workers (was 4, is {workers})' in changes
  assert "the mean of 4 old workers'" in changes and 'drift' in changes and 'reset' in changes
  for name, leaf in state.items():
    value = np.asarray(leaf)
    if name.startswith(('params.', 'optimizer.outer.')):
      assert same_bits(value, before[name]), name
    elif name.startswith('optimizer.counters.') or name == 'step':
      assert value == before[name], name
    elif name.startswith(('optimizer.params.', 'optimizer.inner.')):
      assert value.shape[0] == workers
      expected = before[name].mean(axis=0, dtype=np.float64)
      assert all(same_bits(row, value[0]) for row in value), name
      np.testing.assert_allclose(value[0], expected, rtol=1e-5, atol=1e-8, err_msg=name)
  spread = before['optimizer.params.embedding'].std(axis=0).max()
  assert spread > 0  # The checkpoint is between syncs: its workers differ.
  shardings = jax.tree.map(lambda x: x.sharding, named_leaves(job.program.state_like))
  assert {name: leaf.sharding for name, leaf in state.items()} == shardings


def test_the_same_workers_on_other_devices_go_on_bit_for_bit(text, workdir):
  before = saved(workdir)
  for count, fsdp in ((1, 1), (2, 1), (4, 2), (8, 2)):
    config = small_config(text, **{'mesh.fsdp': fsdp})
    _, state, step, changes = go_on(config, workdir, jax.devices()[:count])
    assert step == 7 and not changes
    assert all(same_bits(leaf, before[name]) for name, leaf in state.items())


def test_a_run_goes_on_with_more_and_with_fewer_workers(text, workdir):
  train(small_config(text, workers=8, stop_at=10), workdir)
  summary = train(small_config(text, workers=2), workdir)
  lines = read_metrics(workdir)
  changes = {line['step']: line['restored'] for line in lines if 'restored' in line}
  assert list(changes) == [7, 10] and 'workers (was 8, is 2)' in changes[10]
  assert summary['steps'] == 12 and summary['workers'] == 2
  assert summary['tokens'] == (7 * 4 + 3 * 8 + 2 * 2) * 2 * 32
  assert [line['tokens'] for line in lines if 'loss' in line][-3] == (7 * 4 + 3 * 8) * 2 * 32
  assert losses(workdir)[-1] < losses(workdir)[6] + 0.1
  assert summary['syncs']['params'] == 4 and summary['syncs']['mu'] == 1
  sent = [line['bytes_per_worker'] for line in lines if 'loss' in line]
  assert sent == sorted(sent) and sent[6] > 0


def test_a_restart_killed_before_its_first_checkpoint_leaves_the_old_run(text, workdir):
  """config.json may be of the new workers already: what counts is the checkpoint's own."""
  reference = shutil.copytree(workdir, workdir.parent / 'reference')
  job, _, _, changes = go_on(small_config(text, workers=2), workdir)
  assert changes and job.clock.segment.step == 7
  (workdir / 'config.json').write_text(json.dumps({'workers': 2}))
  train(small_config(text), workdir)
  train(small_config(text), reference)
  assert losses(workdir) == losses(reference)


def test_the_global_batch_can_stay_as_it_is(text, tmp_path):
  config = small_config(text, global_batch_size=8, stop_at=3)
  train(config, tmp_path)
  job, *_ = go_on(small_config(text, global_batch_size=8, workers=2), tmp_path)
  assert job.program.tokens_like.shape == (2, 1, 4, 33)
  assert job.clock.tokens(4) == 4 * 8 * 32


def test_a_schedule_in_tokens_ends_after_as_many_tokens(text, tmp_path):
  options = {'schedule.unit': 'tokens', 'schedule.name': 'cosine'}
  train(small_config(text, **options, stop_at=4), tmp_path)
  job, *_ = go_on(small_config(text, **options, workers=2), tmp_path)
  assert job.clock.last_step == 4 + 8 * 2
  train(small_config(text, **options, workers=2), tmp_path)
  rates = {line['step']: line['lr'] for line in read_metrics(tmp_path) if 'lr' in line}
  train(small_config(text, **options), tmp_path / 'whole')
  whole = {line['step']: line['lr'] for line in read_metrics(tmp_path / 'whole') if 'lr' in line}
  assert max(rates) == 20
  # Steps 5 and 6 of two workers are step 5 of four.
  for step in range(5, 13):
    assert rates[2 * step - 5] == pytest.approx(whole[step], rel=1e-6)


def test_a_worker_that_is_not_finite_is_left_out_of_the_mean(text, workdir, tmp_path):
  before = saved(workdir)
  config = small_config(text)
  checkpoints = Checkpoints(workdir / 'checkpoints', 2)
  job, state, *_ = begin_or_go_on(config, jax.devices()[:2], checkpoints)
  poison = lambda x: x.at[1].set(np.nan) if x.ndim > 1 else x
  poisoned = jax.tree.map(poison, state.optimizer.params)
  state = state._replace(optimizer=state.optimizer._replace(params=poisoned), step=state.step + 1)
  position = checkpoints.position(7) | {'step': 8}
  position['finite'] = np.asarray(finite_workers(state)).tolist()
  assert position['finite'] == [True, False, True, True]
  checkpoints.save(8, state, position)
  checkpoints.close()
  _, after, _, changes = go_on(small_config(text, workers=2), workdir)
  assert "the mean of 3 old workers'" in changes
  name = 'optimizer.params.embedding'
  np.testing.assert_allclose(
    np.asarray(after[name])[0], before[name][[0, 2, 3]].mean(axis=0), rtol=1e-5, atol=1e-8
  )


ALLOWED = [
  ('periods', {'periods.params': 5, 'periods.nu': 9}),
  ('schedule', {'steps': 20, 'schedule.name': 'cosine'}),
  ('method', {'method': 'diloco'}),
  ('method', {'method': 'ddp'}),
  ('inner', {'inner.name': 'adopt'}),
  ('inner', {'inner.name': 'sgd', 'inner.momentum': 0.9}),
  ('inner', {'inner.clip_norm': 0.0}),
  ('batch', {'batch_size': 4}),
  ('health', {'health.check': False}),
]


@pytest.mark.parametrize(
  ('group', 'options'), ALLOWED, ids=lambda x: x if isinstance(x, str) else next(iter(x.items()))
)
def test_other_options_may_change_if_that_is_said(group, options, text, workdir):
  with pytest.raises(UserError, match=rf'another config.*restore.allow=.*{group}'):
    go_on(small_config(text, **options), workdir)
  config = small_config(text, **options, **{'restore.allow': group, 'stop_at': 9})
  before = losses(workdir)
  summary = train(config, workdir)
  assert summary['steps'] == 9 and losses(workdir)[:7] == before
  assert losses(workdir)[-1] < before[-1] + 0.3
  again = small_config(text, **options, stop_at=10)  # The new options are the run's own now.
  assert train(again, workdir)['steps'] == 10


def test_an_option_that_a_run_did_not_know_is_its_default(text):
  config = small_config(text)
  before = flatten(config)
  del before['health.decay'], before['plan.mfu']
  assert changed_options(config, before) == {}
  config.health.decay = 0.5
  with pytest.raises(UserError, match=r'health.decay \(was 0.98, is 0.5\)'):
    changed_options(config, before)


def test_counts_that_differ_become_that_of_a_worker_that_was_there(text, tmp_path):
  """Of another number of workers, after one was away, with averages before the step."""
  options = {'timing': 'pre', 'failures.away': '1:2-4', 'model.layers': 1}
  train(small_config(text, stop_at=8, **options), tmp_path)
  counts = {n: x for n, x in saved(tmp_path, 8).items() if n.endswith('.count')}
  assert counts and all(x.tolist() == [8] * 4 for x in counts.values())
  _, state, *_ = go_on(small_config(text, workers=2, **options), tmp_path)
  assert all(np.asarray(state[name]).tolist() == [8, 8] for name in counts)


@pytest.mark.parametrize(
  ('values', 'expected'), [(np.int32([8, 7, 8]), 8), (np.uint32([8, 7, 8]), None)]
)
def test_the_largest_of_counts_that_differ_is_taken(values, expected, tmp_path):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', {'count': values})
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = jax.ShapeDtypeStruct((), values.dtype, sharding=one)
  assert LeafReader(tmp_path / 'state').read_if_same('count', range(3), like) == expected


def test_what_is_not_permitted_is_refused(text, workdir):
  with pytest.raises(UserError, match=r'seed \(was 0, is 1\)'):
    go_on(small_config(text, seed=1, **{'restore.allow': 'periods,method,inner'}), workdir)
  with pytest.raises(UserError, match=r'model.width \(was 32, is 64\)'):
    go_on(small_config(text, **{'model.width': 64, 'workers': 2}), workdir)


def test_moments_of_a_shared_model_become_those_of_each_worker(text, tmp_path):
  train(small_config(text, method='ddp', stop_at=4), tmp_path)
  before = saved(tmp_path, 4)
  config = small_config(text, workers=2, **{'restore.allow': 'method'})
  _, state, *_ = go_on(config, tmp_path)
  moments = [name for name in state if '.nu.' in name]
  assert moments
  for name in moments:
    assert same_bits(np.asarray(state[name])[1], before[name])
  for name in (n for n in state if n.startswith('optimizer.params.')):
    assert same_bits(np.asarray(state[name])[0], before[name.removeprefix('optimizer.')])


def test_step_counts_go_on_where_the_inner_optimizer_changes(text, workdir):
  config = small_config(
    text, **{'inner.name': 'sgd', 'inner.momentum': 0.9, 'restore.allow': 'inner'}
  )
  _, state, _, changes = go_on(config, workdir)
  counts = [np.asarray(x) for name, x in state.items() if name.endswith('.count')]
  assert counts and all((count == 7).all() for count in counts)
  assert 'reset' in changes and 'inner.trace' in changes and 'inner.mu, inner.nu' in changes


MEMORY_TEST = """
import resource, sys
import jax, numpy as np
from jax.sharding import SingleDeviceSharding
from desloc_jax.checkpoints.leaves import LeafReader
import pathlib

folder, workers = pathlib.Path(sys.argv[1]), int(sys.argv[2])
like = jax.ShapeDtypeStruct((1024, 1024), np.float32, sharding=SingleDeviceSharding(jax.devices()[0]))
reader = LeafReader(folder)
jax.block_until_ready(jax.device_put(np.zeros((1024, 1024), np.float32)))
used = int([l for l in open('/proc/self/status') if l.startswith('VmData')][0].split()[1]) * 1024
limit = used + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
  np.ones((2 * workers, 1024, 1024), np.float32)  # Of two arrays: half of all.
  print('the limit does not bind')
except MemoryError:
  pass
for leaf in range(4):
  mean = reader.read_mean(f'optimizer.params.{leaf}', range(workers), like)
  assert float(mean[0, 0]) == (workers - 1) / 2 + leaf, mean[0, 0]
print('done')
"""


def test_a_restore_never_holds_the_copies_of_all_workers(tmp_path):
  """64 workers of 16 MiB took 1 GiB; 4 means, read side by side, are made within 360 MiB."""
  workers = 64
  rows = jnp.arange(workers, dtype=jnp.float32)[:, None, None]
  folder = tmp_path / 'checkpoints'
  arrays = {
    f'optimizer.params.{leaf}': jnp.broadcast_to(rows + leaf, (workers, 1024, 1024))
    for leaf in range(4)
  }
  save_args = {name: chunks(name, array) for name, array in arrays.items()}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder.absolute(), arrays, save_args=save_args)
  del arrays
  result = subprocess.run(
    [sys.executable, '-c', MEMORY_TEST, folder, str(workers), str(360 * 2**20)],
    capture_output=True, text=True, env=environment(), cwd=ROOT,
  )  # fmt: skip
  assert result.returncode == 0 and result.stdout == 'done\n', result.stdout + result.stderr
