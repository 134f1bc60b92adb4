"""One run a workdir, and what becomes of one that has ended."""

import json
import os
import subprocess
import sys

from absl import logging
import pytest

from desloc_jax.errors import UserError
from desloc_jax.logs import lock
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.logs.plot import plot_training
from desloc_jax.logs.workdir import LOCK_FILE
from tests.environment import environment
from tests.runs import small_config, train_on_two as train

HOLDER = """
import pathlib, sys, time
from desloc_jax.logs import lock
with lock.hold(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(100)
"""


@pytest.fixture
def workdir(after_seven_steps):
  return after_seven_steps


def files(workdir):
  """Returns contents and times of all files of a run."""
  paths = [path for path in sorted(workdir.rglob('*')) if path.is_file()]
  return {path.relative_to(workdir): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_a_second_run_is_refused_until_the_first_ends_by_kill_too(text, workdir):
  holder = subprocess.Popen(
    [sys.executable, '-c', HOLDER, workdir], stdout=subprocess.PIPE, text=True, env=environment()
  )
  try:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(UserError, match=rf'is in use by process {holder.pid} on .* since 20'):
      train(small_config(text), workdir)
    plot_training(workdir)  # Which only reads.
  finally:
    holder.kill()
    holder.wait()
  assert (workdir / LOCK_FILE).exists()
  assert train(small_config(text, stop_at=8), workdir)['steps'] == 8
  assert not (workdir / LOCK_FILE).exists()


def test_of_many_that_begin_at_once_one_holds_the_lock(tmp_path):
  code = HOLDER.replace('100', '2').replace("print('held'", "print('held', end=''")
  started = [
    subprocess.Popen(
      [sys.executable, '-c', code, tmp_path / 'run'],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )
    for _ in range(3)
  ]  # fmt: skip
  ends = [process.communicate(timeout=100) for process in started]
  held = [out for out, _ in ends if out]
  refused = [errors for out, errors in ends if not out]
  assert held and all('is in use by process' in errors for errors in refused)
  # Whoever came after the first had ended could hold it in turn, and took no file from another.
  assert not (tmp_path / 'run').exists()


def test_what_was_refused_leaves_no_folder(tmp_path):
  with pytest.raises(UserError, match='There is no file'):
    train(small_config(tmp_path / 'nothing'), tmp_path / 'a' / 'run')
  assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))

  def no_locks(*_):
    raise OSError(lock.errno.ENOLCK, os.strerror(lock.errno.ENOLCK))

  monkeypatch.setattr(lock.fcntl, 'flock', no_locks)
  with lock.hold(tmp_path):
    assert len(warnings) == 1 and 'cannot be locked (No locks available)' in warnings[0]


def test_a_link_in_the_place_of_the_lock_is_not_written_through(tmp_path, text):
  (tmp_path / 'precious').write_text('notes')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / LOCK_FILE).symlink_to(tmp_path / 'precious')
  with pytest.raises(UserError, match='is not a file'):
    train(small_config(text), tmp_path / 'run')
  assert (tmp_path / 'precious').read_text() == 'notes'


OTHER = [
  {'workers': 8},
  {'method': 'ddp', 'restore.allow': 'method'},
  {'periods.params': 5, 'restore.allow': 'periods'},
  {'workers': 2, 'worker_weights': (1.0, 2.0)},
]


@pytest.mark.parametrize('options', OTHER, ids=str)
def test_a_run_that_has_ended_does_not_become_another(text, workdir, options):
  before = files(workdir)
  name = next(iter(options))
  with pytest.raises(UserError, match=rf'has ended at step 7, .* make no step .*{name} \(was'):
    train(small_config(text, stop_at=7, **options), workdir)
  assert files(workdir) == before


@pytest.mark.parametrize(
  'options', [{}, {'log_every': 3, 'eval.sequences': 8}, {'eval.every': 2, 'mesh.fsdp': 1}], ids=str
)
def test_a_run_that_has_ended_is_told_again_as_it_was(text, workdir, options):
  before = files(workdir)
  summary = train(small_config(text, stop_at=7, **options), workdir)
  assert files(workdir) == before
  assert summary == json.loads((workdir / 'summary.json').read_text())


def test_what_is_lost_of_a_run_that_has_ended_is_made_again(text, workdir):
  before = json.loads((workdir / 'summary.json').read_text())
  for name in ('summary.json', 'training.png', 'config.json'):
    (workdir / name).unlink()
  (workdir / 'config.json').write_text(json.dumps({'workers': 8}))
  train(small_config(text, stop_at=7), workdir)
  again = json.loads((workdir / 'summary.json').read_text())
  assert again['val_loss'] == before['val_loss'] and (workdir / 'training.png').exists()
  assert json.loads((workdir / 'config.json').read_text())['workers'] == 4


@pytest.mark.parametrize('kept', [0, 4])
def test_a_run_whose_log_is_gone_can_still_be_summed_up(text, workdir, kept, capsys):
  before = json.loads((workdir / 'summary.json').read_text())
  lines = (workdir / 'metrics.jsonl').read_text().splitlines(keepends=True)
  (workdir / 'metrics.jsonl').write_text(''.join(lines[:kept]))
  (workdir / 'summary.json').unlink()
  summary = train(small_config(text, stop_at=7), workdir)
  assert f'has lost its lines of steps {kept} to 7.' in capsys.readouterr().out
  assert summary['val_loss'] == pytest.approx(before['val_loss'], rel=1e-6)
  assert summary['train_loss'] is None and summary['bytes_per_worker'] == before['bytes_per_worker']
  last = read_metrics(workdir)[-1]
  assert last['step'] == 7 and last['tokens'] == before['tokens'] and 'lost' in last['restored']
  train(small_config(text, stop_at=7), workdir)
  assert 'lost' not in capsys.readouterr().out  # It is told once.


def test_a_run_that_goes_on_tells_which_lines_are_lost(text, workdir, monkeypatch):
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
  (workdir / 'metrics.jsonl').unlink()
  assert train(small_config(text, stop_at=8), workdir)['steps'] == 8
  assert 'metrics.jsonl has lost its lines of steps 0 to 7.' in warnings
  assert read_metrics(workdir)[0] == {
    'step': 7, 'restored': 'metrics.jsonl has lost its lines of steps 0 to 7.'
  }  # fmt: skip


def test_a_restart_that_came_to_nothing_leaves_no_line(text, workdir):
  """It was killed before its first checkpoint: the next one goes on from the same."""
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps({'step': 7, 'restored': 'workers (was 4, is 8)'}) + '\n')
  train(small_config(text, stop_at=8), workdir)
  assert not [line for line in read_metrics(workdir) if 'restored' in line]
