"""Paths as users write them, and folders that are not of this machine."""

import os
import pathlib
import sys

import jax
import pytest
from tensorboardX.proto import event_pb2

from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.data.prepare import main as prepare
from desloc_jax.data.train_tokenizer import main as train_tokenizer
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import MetricsWriter
from desloc_jax.logs.workdir import check_workdir
from desloc_jax.paths import local_path, resolve, shown
from desloc_jax.train.setup.open_data import open_texts
from experiments.command import make_parser
from tests.runs import small_config, train_on_two


@pytest.mark.parametrize(
  'path',
  [
    'gs://bucket/run',
    's3://b/run',
    'hdfs://h/x',
    'file:///x',
    'gs:/b',
    'https://a/b',
    's3:x',
    'GS:b/x',
  ],
)
def test_addresses_are_refused_with_the_choice(path):
  with pytest.raises(
    UserError, match=r'--workdir=.* is an address of \w+; expected a folder .*Mount'
  ):
    resolve(path, '--workdir')
  with pytest.raises(UserError, match='is an address of'):  # As pathlib writes it.
    resolve(pathlib.Path(path), '--workdir')


def test_names_that_look_like_addresses_are_kept():
  for path in (
    'sotu',
    'hf:user/name:config:split',
    'a:b/c',
    'text/*.txt',
    './gs',
    'C:/x',
    './s3:x',
  ):
    assert local_path(path, '--input') == path


def test_home_is_expanded(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert resolve('~/a run', '--workdir') == tmp_path / 'a run'
  assert local_path('~/text/*.txt', '--input') == f'{tmp_path}/text/*.txt'
  with pytest.raises(UserError, match='~nobody-of-that-name is no user here'):
    resolve('~nobody-of-that-name/x', '--workdir')


def test_one_folder_has_one_path(tmp_path, monkeypatch):
  (tmp_path / 'real' / 'below').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'real' / 'below')
  monkeypatch.chdir(tmp_path / 'real')
  expected = tmp_path / 'real' / 'x'
  for path in ('x', './x/', '../real/x', f'{tmp_path}/link/../x', str(expected), 'x/y/..'):
    assert resolve(path, '--workdir') == expected, path
  assert shown(expected) == 'x' and shown(tmp_path) == str(tmp_path)


def test_paths_that_the_system_refuses(tmp_path, monkeypatch):
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  for path in (tmp_path / 'loop' / 'x', tmp_path / ('x' * 300)):
    with pytest.raises(UserError, match='--workdir=.*(leads to itself|cannot be used)'):
      resolve(path, '--workdir')
  with pytest.raises(UserError, match='no UTF-8'):
    resolve('/tmp/\udcff', '--workdir')
  monkeypatch.setattr(sys, 'getfilesystemencoding', lambda: 'ascii')
  with pytest.raises(UserError, match='reads names as ascii: set PYTHONUTF8=1'):
    resolve('/tmp/\udcff', '--workdir')
  for path in ('', ' '):
    with pytest.raises(UserError, match='--workdir is empty; expected a folder'):
      resolve(path, '--workdir')
  for name in ('x*', 'a?', '[1]'):
    with pytest.raises(UserError, match='has one of the characters'):
      check_workdir(tmp_path / name / 'run')
  with pytest.raises(UserError, match='bytes long; expected at most'):
    check_workdir(tmp_path / '/'.join(['x' * 205] * 19))


def test_a_path_in_a_folder_that_is_gone(tmp_path, monkeypatch):
  (tmp_path / 'gone').mkdir()
  with monkeypatch.context() as patch:
    patch.chdir(tmp_path / 'gone')
    (tmp_path / 'gone').rmdir()
    with pytest.raises(UserError, match='--workdir=x cannot be used: the current folder is gone'):
      resolve('x', '--workdir')
    assert resolve(tmp_path, '--workdir') == tmp_path


def test_every_command_refuses_addresses(text, capsys):
  for command in (
    lambda: prepare(['--input=gs://b/text', '--output=x']),
    lambda: prepare(['--input=sotu', '--output=s3://b/tokens']),
    lambda: train_tokenizer(['--input=sotu', '--output=gs://b/t.json']),
  ):
    with pytest.raises(SystemExit):
      command()
    assert 'is an address of' in capsys.readouterr().err
  with pytest.raises(UserError, match='--runs=gs://b/runs is an address'):
    make_parser('experiments.paper.periods', '').parse_args(['--runs=gs://b/runs'])
  with pytest.raises(UserError, match=r'data.sources.text.path=gs://b is an address'):
    open_texts(small_config('gs://b'))


@pytest.mark.parametrize('name', ['../up', 'a b', 'ünïcödé 走', '%41#&=', 'trailing/'])
def test_runs_go_on_in_folders_of_any_name(text, tmp_path, monkeypatch, name):
  """tensorstore refuses `..`, and has its own reading of some characters."""
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  checkpoints = Checkpoints(pathlib.Path(name) / 'checkpoints', 2)
  state = {'x': jax.numpy.arange(4.0)}
  monkeypatch.setattr('desloc_jax.checkpoints.store.named_leaves', lambda state: state)
  checkpoints.save(3, state, {'step': 3})
  checkpoints.close()
  again = Checkpoints(pathlib.Path(name) / 'checkpoints', 2)
  monkeypatch.chdir(tmp_path)
  assert again.steps() == [3] and again.position(3) == {'step': 3}
  again.verify(3)
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = {'x': jax.ShapeDtypeStruct((4,), 'float32', sharding=one)}
  assert again.restore(3, like)['x'].tolist() == [0, 1, 2, 3]
  assert again.leaves(3)['x'].shape == (4,)


def test_a_run_goes_on_by_another_path(text, after_seven_steps, monkeypatch):
  monkeypatch.chdir(after_seven_steps)
  summary = train_on_two(small_config(text, stop_at=8), os.path.join('..', 'run', '..', 'run'))
  assert summary['steps'] == 8


def test_tensorboard_hides_the_points_of_a_run_that_begins_anew(tmp_path, monkeypatch):
  written = []
  monkeypatch.setattr(
    'tensorboardX.event_file_writer.EventsWriter.write_event',
    lambda self, event: written.append(event),
  )
  for start, purged in ((0, 0), (5, 6)):
    MetricsWriter(tmp_path, start).close()
    marks = [(e.step, e.session_log.status) for e in written if e.HasField('session_log')]
    assert marks == [(purged, event_pb2.SessionLog.START)]
    written.clear()
