"""The trainer from configuration to checkpoint, on real files."""

import json
import pathlib
import re
import shutil
import types

from absl import logging
import jax
import numpy as np
import pytest

from desloc_jax import data as data_lib
from desloc_jax.checkpoints.segment import BEGINNING, make_clock
from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.data import sources, StreamStart
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.options.batch import batch_of
from desloc_jax.train.divergence import check_finite_state, TrainingDiverged
from desloc_jax.train.job import make_job
from desloc_jax.train.loop import train as train_on
from desloc_jax.train.program import make_program, make_worker_mesh
from desloc_jax.train.setup.open_data import Data, load_data
from desloc_jax.train.speed.profile import Profile
from desloc_jax.train.step import finite_workers
from tests.runs import losses, same_bits, small_config, train_on_two as train, write_text

NO_CHECK = {'health.check': False}  # A step is traced and compiled in half the time.


@pytest.fixture(scope='module')
def finished(text, tmp_path_factory):
  """A finished run: (config, workdir, summary)."""
  workdir = tmp_path_factory.mktemp('runs') / 'finished'
  config = small_config(text, **{'eval.every': 4, 'profile.steps': '6-7'})
  return config, workdir, train(config, workdir)


def restored(config, workdir):
  job = make_job(config, jax.devices()[:2])
  checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoint.keep)
  step = checkpoints.steps()[0]
  state, position = checkpoints.restore(step, job.program.state_like), checkpoints.position(step)
  checkpoints.close()
  return state, position


def test_a_run_leaves_what_it_promises(finished):
  config, workdir, summary = finished
  assert json.loads((workdir / 'summary.json').read_text()) == json.loads(json.dumps(summary))
  assert json.loads((workdir / 'config.json').read_text())['periods.params'] == 3
  assert (workdir / 'training.png').read_bytes().startswith(b'\x89PNG')
  assert list((workdir / 'tensorboard').iterdir())
  lines = read_metrics(workdir)
  assert [line['step'] for line in lines] == list(range(13))
  evaluated = [line['step'] for line in lines if 'val_loss' in line]
  assert evaluated == [0, 4, 8, 12]
  assert lines[-1]['val_loss'] < lines[0]['val_loss'] - 0.5
  assert summary['val_loss'] == lines[-1]['val_loss']
  assert summary['perplexity'] == pytest.approx(np.exp(summary['val_loss']))
  assert summary['tokens'] == 12 * 4 * 2 * 32
  for key in ('tokens_per_s', 'compile_s', 'peak_memory_bytes', 'parameters'):
    assert summary[key] > 0


def test_each_name_in_a_line_is_explained(finished):
  page = (pathlib.Path(__file__).parents[2] / 'docs/watching.md').read_text()
  explained = {name for row in re.findall(r'^\| (`.*?) \|', page, re.M) for name in row.split(', ')}
  written = {f'`{name}`' for line in read_metrics(finished[1]) for name in line}
  assert written <= explained


def test_lines_say_how_long_steps_take(finished):
  """Not the first after an evaluation, which has none before it to count from."""
  _, workdir, _ = finished
  lines = read_metrics(workdir)[1:]
  seconds = [line['seconds'] for line in lines]
  assert seconds == sorted(seconds) and seconds[0] > 0
  of_kind = lambda name: [line['step'] for line in lines if line.get(name, 0) > 0]
  assert of_kind('sync_step_ms') == [3, 6, 12]
  assert of_kind('local_step_ms') == [2, 4, 7, 8, 10, 11]
  assert of_kind('peak_memory_bytes') == list(range(1, 13))
  assert not of_kind('mfu')  # The peak of a CPU is not known.


def test_the_named_steps_are_profiled_for_tensorboard(finished):
  _, workdir, _ = finished
  (profile,) = (workdir / 'tensorboard' / 'plugins' / 'profile').glob('*/*.xplane.pb')
  planes = jax.profiler.ProfileData.from_file(str(profile)).planes
  assert any(line.events for plane in planes for line in plane.lines)


def test_steps_to_profile_that_a_run_does_not_make_are_told_of(tmp_path, monkeypatch):
  told = []
  monkeypatch.setattr(logging, 'warning', lambda text, *values: told.append(text % values))
  Profile('100-103', tmp_path, 0, 50).close()
  assert told == ['profile.steps is 100-103: this run makes steps 1 to 50.']


def test_sources_that_are_read_again_are_told_of(monkeypatch):
  told = []
  monkeypatch.setattr(logging, 'warning', lambda text, *values: told.append(text % values))
  stream = types.SimpleNamespace(epochs=lambda step: {'a': step / 40, 'b': 0.5, 'c': 1.0})
  data = Data(None, [], [], stream, None)
  data.warn_of_epochs(100)
  assert told == ['Training to step 100 reads source a 2.50 times.']
  data.warn_of_epochs(40)
  assert len(told) == 1


def test_syncs_and_bytes_are_those_of_the_periods(finished):
  _, workdir, summary = finished
  size = 4 * summary['parameters']
  assert summary['syncs'] == {'params': 4, 'mu': 1, 'nu': 0, 'health': 4, 'restarts': 0}
  sent = 5 * size + 4 * 80  # The health check sends 20 bytes of each of 4 workers before each sync.
  assert summary['bytes_per_worker'] == sent
  assert summary['ring_bytes_per_worker'] == 1.5 * sent
  assert summary['ddp_bytes_per_worker'] == 12 * size
  assert summary['local_adam_bytes_per_worker'] == 12 * size
  synced = {line['step']: line['synced'] for line in read_metrics(workdir) if line['synced']}
  assert synced == {3: ['params'], 6: ['params'], 9: ['mu', 'params'], 12: ['params']}
  drift = [line['drift'] for line in read_metrics(workdir) if line.get('drift')]
  assert all(0 < value < 1 for values in drift for value in values.values())


def test_the_local_mean_is_evaluated_between_syncs_only(finished):
  _, workdir, _ = finished
  with_local = [line['step'] for line in read_metrics(workdir) if 'val_loss_local_mean' in line]
  assert with_local == [4, 8]


def test_bits_per_byte_of_bytes(finished):
  """A token is a byte, but for the end of each document."""
  _, _, summary = finished
  assert summary['bits_per_byte'] == pytest.approx(summary['val_loss'] / np.log(2), rel=0.01)


def test_a_resumed_run_is_bit_identical(finished, text, tmp_path):
  config, workdir, summary = finished
  first = small_config(text, **{'eval.every': 4, 'stop_at': 7})
  train(first, tmp_path)
  assert read_metrics(tmp_path)[-1]['step'] == 7
  resumed = train(config, tmp_path)
  assert losses(tmp_path) == losses(workdir)
  assert resumed['syncs'] == summary['syncs'] and resumed['val_loss'] == summary['val_loss']
  one, position = restored(config, workdir)
  other, other_position = restored(config, tmp_path)
  assert same_bits(one, other) and position == other_position


@pytest.mark.parametrize(
  'options',
  [
    {'sync_warmup_steps': 5, 'method': 'desloc_nesterov'},
    {'stochastic': True},
    {'period_growth': 3.0},
  ],
  ids=lambda options: next(iter(options)),
)
def test_when_to_average_survives_a_resume(options, text, tmp_path):
  """Stopped within a warm-up, between coins, and while periods grow."""
  options |= {'steps': 9, 'eval.sequences': 4, **NO_CHECK}
  whole = train(small_config(text, **options), tmp_path / 'whole')
  train(small_config(text, **options, stop_at=4), tmp_path / 'resumed')
  resumed = train(small_config(text, **options), tmp_path / 'resumed')
  assert losses(tmp_path / 'resumed') == losses(tmp_path / 'whole')
  assert resumed['syncs'] == whole['syncs'] and resumed['val_loss'] == whole['val_loss']


def test_a_finished_run_is_summed_up_again(finished, tmp_path):
  """Also where the process died between its last checkpoint and its summary."""
  config, workdir, summary = finished
  copy = shutil.copytree(workdir, tmp_path / 'copy')
  for name in ('summary.json', 'training.png'):
    (copy / name).unlink()
  again = train(config, copy)
  assert again['val_loss'] == summary['val_loss'] and again['syncs'] == summary['syncs']
  assert (copy / 'training.png').exists() and (copy / 'summary.json').exists()
  assert (copy / 'metrics.jsonl').read_bytes() == (workdir / 'metrics.jsonl').read_bytes()


def test_a_run_cannot_end_before_it_is(finished, text):
  _, workdir, _ = finished
  with pytest.raises(UserError, match='at step 12 already.*end at step 5'):
    train(small_config(text, **{'eval.every': 4, 'stop_at': 5}), workdir)


def test_another_config_is_refused_with_the_keys_that_differ(finished, text):
  config, workdir, _ = finished
  other = small_config(text, **{'eval.every': 4, 'periods.params': 6, 'seed': 1})
  with pytest.raises(UserError, match=r'seed \(was 0, is 1\).*periods.params \(was 3, is 6\)'):
    train(other, workdir)


def test_changed_data_is_refused(text, tmp_path):
  mine = write_text(tmp_path / 'text')
  train(small_config(mine, stop_at=2), tmp_path / 'run')
  (mine / '000.txt').write_text('something else entirely ' * 100)
  sources._tokenise.cache_clear()  # As in a new process.
  with pytest.raises(UserError, match='the data has changed'):
    train(small_config(mine), tmp_path / 'run')


def test_only_the_newest_checkpoints_are_kept(text, tmp_path):
  train(small_config(text, **{'checkpoint.every': 2, 'checkpoint.keep': 2, 'stop_at': 7}), tmp_path)
  kept = sorted(p.name for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit())
  assert kept == ['6', '7']


@pytest.mark.slow
def test_the_number_of_devices_does_not_change_the_run(text, tmp_path):
  """Sums over another number of devices round differently: 1e-4 of the loss after 6 steps."""
  reference = None
  for count in (1, 2, 4, 8):
    config = small_config(text, stop_at=6, **NO_CHECK)
    train_on(config, tmp_path / str(count), jax.devices()[:count])
    if reference is None:
      reference = losses(tmp_path / str(count))
    np.testing.assert_allclose(losses(tmp_path / str(count)), reference, rtol=1e-4)


@pytest.mark.parametrize('workers', [1, 4])
def test_workers_that_share_several_devices_train_as_on_one(workers, text, tmp_path):
  """A mesh of one row: mesh.fsdp is all of the devices."""
  runs = {}
  for count in (1, 2):
    config = small_config(text, workers=workers, stop_at=4, **NO_CHECK, **{'mesh.fsdp': count})
    runs[count] = train_on(config, tmp_path / str(count), jax.devices()[:count])
  np.testing.assert_allclose(losses(tmp_path / '2'), losses(tmp_path / '1'), rtol=1e-4)
  assert runs[1]['bytes_per_worker'] == runs[2]['bytes_per_worker']
  assert (runs[1]['bytes_per_worker'] > 0) == (workers > 1)


def program_of(config, devices):
  """Returns the program of a config for so many devices, which is not compiled."""
  mesh = make_worker_mesh(config, batch_of(config), jax.devices()[:devices])
  return make_program(config, 257, make_clock(config, BEGINNING), mesh)


def test_the_token_stream_does_not_depend_on_devices(text):
  data = load_data(small_config(text), StreamStart(), range(4))
  batches = []
  for count in (1, 8):
    like = program_of(small_config(text), count).tokens_like
    stream = data_lib.TrainingStream(data.train, workers=4, batch_size=2, seed=0)
    placed = jax.device_put(stream.batch(3).reshape(like.shape), like.sharding)
    batches.append(np.asarray(placed))
  np.testing.assert_array_equal(*batches)


def test_accumulation_changes_rounding_only(text, tmp_path):
  train(small_config(text, stop_at=4, **NO_CHECK), tmp_path / 'whole')
  train(small_config(text, stop_at=4, accumulation=2, **NO_CHECK), tmp_path / 'split')
  np.testing.assert_allclose(losses(tmp_path / 'split'), losses(tmp_path / 'whole'), rtol=1e-4)


def diverging(text, learning_rate, inner='sgd'):
  return small_config(
    text,
    **{
      'inner.name': inner,
      'inner.learning_rate': learning_rate,
      'inner.clip_norm': 0.0,
      'checkpoint.every': 1,
      'checkpoint.keep': 20,
      'schedule.warmup_steps': 0,
      **NO_CHECK,
    },
  )


def test_a_diverged_run_names_the_worker_and_keeps_finite_checkpoints(text, tmp_path):
  config = diverging(text, 1e12)
  with pytest.raises(TrainingDiverged, match=r'of worker 0.* at step \d+|after step \d+'):
    train(config, tmp_path)
  kept = [int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]
  job = make_job(config, jax.devices()[:2])
  checkpoints = Checkpoints(tmp_path / 'checkpoints', 20)
  for step in kept:
    assert bool(finite_workers(checkpoints.restore(step, job.program.state_like)).all())
  checkpoints.close()


def test_a_state_that_is_not_finite_is_never_saved():
  """Unless its workers can be left out, and one of them is well."""
  one, none = np.array([True, False]), np.array([False, False])
  check_finite_state(3, one, can_be_left_out=True)
  for finite, can_be_left_out in ((one, False), (none, True)):
    with pytest.raises(TrainingDiverged, match=r'worker (0, )?1 are not finite after step 3'):
      check_finite_state(3, finite, can_be_left_out)


def test_a_period_beyond_the_run_is_warned_of(text, monkeypatch):
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
  program_of(small_config(text, **{'periods.nu': 100}), 1)
  (warning,) = [text for text in warnings if 'periods.nu is 100' in text]
  assert 'nu is averaged never' in warning


@pytest.mark.slow
@pytest.mark.parametrize('method', ['local_adam', 'favg_opt', 'diloco', 'desloc_nesterov', 'ddp'])
def test_every_method_trains_in_the_same_loop(method, text, tmp_path):
  summary = train(small_config(text, method=method, steps=6, **NO_CHECK), tmp_path)
  lines = read_metrics(tmp_path)
  assert lines[-1]['val_loss'] < lines[0]['val_loss']
  expected = {
    'local_adam': {'params': 2, 'mu': 2, 'nu': 2},
    'favg_opt': {'params': 2},
    'diloco': {'params': 2},
    'desloc_nesterov': {'params': 2, 'mu': 0, 'nu': 0},
    'ddp': {'gradients': 6},
  }
  syncs = {n: count for n, count in summary['syncs'].items() if n not in ('health', 'restarts')}
  assert syncs == expected[method]


@pytest.mark.parametrize('name', ['sgd', 'adopt'])
def test_other_inner_optimizers_train(name, text, tmp_path):
  options = {
    'inner.name': name,
    'steps': 8,
    'inner.learning_rate': {'sgd': 0.3, 'adopt': 3e-3}[name],
    **NO_CHECK,
  }
  train(small_config(text, **options), tmp_path)
  lines = read_metrics(tmp_path)
  assert lines[-1]['val_loss'] < lines[0]['val_loss']
