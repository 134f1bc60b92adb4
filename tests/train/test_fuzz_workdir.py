"""Spoilt folders of runs: used or refused, and never a way to other files or to what is pickled."""

import json
import os
import pathlib
import pickle
import shutil
import tempfile

from hypothesis import given, strategies as st
import jax
import pytest

from desloc_jax.checkpoints import checksums
from desloc_jax.train import cli, loop
from tests.fuzzing import (
  changed_json,
  contents,
  damaged,
  ending,
  fuzz,
  JUNK,
  prepare_lines,
  try_data,
)
from tests.runs import small_config

pytestmark = pytest.mark.usefixtures('elsewhere')


@pytest.fixture
def undrawn():
  """Figures are drawn here."""


def run_config(text, **options):
  shape = {'workers': 2, 'batch_size': 1, 'seq_len': 16, 'steps': 8, 'checkpoint.every': 2}
  model = {'model.layers': 1, 'model.width': 16, 'eval.sequences': 4}
  return small_config(text, **shape, **model, **options)


@pytest.fixture(scope='module')
def finished(text, tmp_path_factory):
  """The folder of a run that stopped after step 4, with checkpoints of steps 2 and 4."""
  folder = tmp_path_factory.mktemp('runs') / 'run'
  assert go_on(text, folder, stop_at=4) == ''
  return folder


def make_outside(finished, folder):
  """Returns a folder beside the workdir, with a file and another run, that no run may touch."""
  shutil.copytree(finished, folder / 'outside' / 'run')
  (folder / 'outside' / 'precious').write_bytes(b'mine')
  return folder / 'outside'


def go_on(text, workdir, codes=(2,), **options):
  """Returns the line in which a run in `workdir` ends, '' for success."""
  train = lambda: loop.train(run_config(text, **options), workdir, jax.devices()[:1])
  return ending(train, codes)


STEP_NAMES = ['5', '6', '0', '-1', '9' * 20, '2147483648', '04', '4.0', '4 ', '٥', 'step_4', 'é',
              '3.orbax-checkpoint-tmp', '3.orbax-checkpoint-tmp-1', 'damaged-4', '.x', 'notes.txt',
              'commit_success.txt', '_CHECKPOINT_METADATA', 'a' * 200]  # fmt: skip
WORKDIR_FILES = ['config.json', 'metrics.jsonl', 'summary.json', 'training.png']


KINDS = ['file', 'folder', 'copy', 'file link', 'dangling', 'run link']


def put(draw, path, outside, kinds):
  """Makes `path` a file, a folder, or a link to what is not the run's."""
  kind = draw(st.sampled_from(kinds))
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  path.unlink(missing_ok=True)
  match kind:
    case 'file':
      path.write_bytes(draw(st.sampled_from(JUNK).map(lambda x: json.dumps(x).encode())))
    case 'folder':
      path.mkdir()
    case 'copy':
      shutil.copytree(outside / 'run' / 'checkpoints' / '4', path)
    case 'file link':
      path.symlink_to(outside / 'precious')
    case 'run link':
      path.symlink_to(outside / 'run' / 'checkpoints' / '4')
    case 'dangling':
      path.symlink_to(outside / 'nothing')


def sign(checkpoint):
  checksums.sign(checkpoint, ('state', 'position'), 1)


def spoil(draw, workdir, outside):
  """Changes something in the folder of a run."""
  checkpoint = workdir / 'checkpoints' / '4'
  match draw(st.sampled_from(['step', 'checksums', 'position', 'state', 'file', 'line', 'folder'])):
    case 'step':
      name = draw(st.sampled_from(STEP_NAMES))
      put(draw, workdir / 'checkpoints' / name, outside, KINDS)
    case 'checksums':
      path = checkpoint / checksums.FILE
      entries = json.loads(path.read_text())
      names = ['../../../outside/precious', str(outside / 'precious'), '\0', 'a' * 5000, '', '..']
      other = st.sampled_from(names).map(lambda name: entries | {name: [4, 0]})
      content = draw(changed_json(entries) | other | st.sampled_from(JUNK))
      path.write_text(json.dumps(content))
    case 'position':
      path = checkpoint / 'position' / 'metadata'
      path.write_text(json.dumps(draw(changed_json(json.loads(path.read_text())))))
      sign(checkpoint)
    case 'state':
      files = sorted(path for path in checkpoint.rglob('*') if path.is_file())
      path = draw(st.sampled_from(files))
      path.write_bytes(draw(damaged(path.read_bytes())))
      if draw(st.booleans()):
        sign(checkpoint)
    case 'file':
      name = draw(st.sampled_from(WORKDIR_FILES)) + draw(st.sampled_from(['', '.partial']))
      put(draw, workdir / name, outside, KINDS)
    case 'line':
      path = workdir / 'metrics.jsonl'
      lines = path.read_text().splitlines()
      number = draw(st.integers(0, len(lines) - 1))
      lines[number] = json.dumps(draw(changed_json(json.loads(lines[number]))))
      path.write_text('\n'.join(lines) + '\n')
    case 'folder':
      name = draw(st.sampled_from(['checkpoints', 'tensorboard']))
      put(draw, workdir / name, outside, KINDS[:-1])  # A link to a folder is where to write.


@given(st.data())
@fuzz(30)
def test_a_spoilt_workdir_is_used_or_refused(text, finished, elsewhere, data):
  folder = pathlib.Path(tempfile.mkdtemp(dir=elsewhere))
  outside, workdir = make_outside(finished, folder), shutil.copytree(finished, folder / 'run')
  spoil(data.draw, workdir, outside)
  before = contents(outside)
  # A state of other numbers, signed as if it were right, may diverge, which is said too.
  codes = (2, cli.DIVERGED)
  stop_at = data.draw(st.sampled_from([4, 6]))
  go_on(text, workdir, codes, stop_at=stop_at, **{'checkpoint.keep': 1})
  assert contents(outside) == before
  assert {path.name for path in folder.iterdir()} == {'outside', 'run'}


def test_a_checksum_of_a_file_outside_is_damage(finished, elsewhere):
  """It is neither read nor taken for a file of the checkpoint, even if it is as it says."""
  outside = make_outside(finished, elsewhere)
  workdir = shutil.copytree(finished, elsewhere / 'run')
  path = workdir / 'checkpoints' / '4' / checksums.FILE
  entries = json.loads(path.read_text())
  crc = checksums._crc(outside / 'precious')
  for name in ('../../../outside/precious', str(outside / 'precious')):
    path.write_text(json.dumps(entries | {name: [4, crc]}))
    assert 'is not in the checkpoint' in checksums.find_damage(path.parent)
  path.write_text(json.dumps(entries))
  assert checksums.find_damage(path.parent) is None


def test_files_that_a_run_would_write_are_not_those_of_others(text, elsewhere):
  workdir = elsewhere / 'run'
  (elsewhere / 'precious').write_bytes(b'mine')
  for name in ('config.json', 'training.png'):
    workdir.mkdir()
    (workdir / name).symlink_to(elsewhere / 'precious')
    assert name in go_on(text, workdir)
    shutil.rmtree(workdir)
  workdir.mkdir()
  for content in ('{"name": "my app"}', 'junk', '[' * 100_000, '3'):
    (workdir / 'config.json').write_text(content)
    assert 'is not the config of a run' in go_on(text, workdir)
    assert contents(workdir) == {workdir / 'config.json': content.encode()}


# Pickles.


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  return prepare_lines(tmp_path_factory.mktemp('prepared'))


class Bomb:
  def __reduce__(self):
    return os.mkdir, ('exploded',)


def test_nothing_is_unpickled(text, finished, prepared, elsewhere, monkeypatch):
  def refuse(*args, **options):
    raise AssertionError('something was unpickled')

  for name in ('load', 'loads', 'Unpickler'):
    monkeypatch.setattr(pickle, name, refuse)
  with pytest.raises(AssertionError, match='unpickled'):
    pickle.loads(b'')
  workdir = shutil.copytree(finished, elsewhere / 'run')
  assert go_on(text, workdir, stop_at=6) == ''
  assert try_data(prepared) == ''


def test_a_pickle_in_place_of_a_file_does_not_go_off(text, finished, prepared, elsewhere):
  bomb = pickle.dumps(Bomb())
  with pytest.raises(FileExistsError):  # It would.
    pickle.loads(bomb)
    pickle.loads(bomb)
  (elsewhere / 'exploded').rmdir()
  folder = shutil.copytree(prepared, elsewhere / 'tokens')
  objects = b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
  objects = objects.ljust(127) + b'\n' + bomb
  shard = next(path for path in folder.iterdir() if path.suffix == '.npy')
  for content in (bomb, objects):
    shard.write_bytes(content)
    assert shard.name in try_data(folder)
  for name in ('text.jsonl', 'text.parquet', 'text.jsonl.gz', 'tokenizer.json'):
    (elsewhere / name).write_bytes(bomb)
    assert name in try_data(elsewhere / name)
    assert name in try_data(text, elsewhere / name) or name != 'tokenizer.json'
  workdir = shutil.copytree(finished, elsewhere / 'run')
  checkpoint = workdir / 'checkpoints' / '4'
  for name in (checksums.FILE, 'position/metadata', 'state/_METADATA', 'state/manifest.ocdbt'):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(bomb)
    if name != checksums.FILE:
      sign(checkpoint)
    copied = shutil.copytree(workdir, elsewhere / 'copy')
    go_on(text, copied, stop_at=4)
    assert (copied / 'checkpoints' / 'damaged-4').exists() or name == 'state/_METADATA'
    shutil.rmtree(copied)
    (checkpoint / name).write_bytes(content)
  assert not (elsewhere / 'exploded').exists()
