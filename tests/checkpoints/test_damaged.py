"""Damaged checkpoints are found, and a run goes on from the one before."""

import errno
import json
import os
import pathlib

from absl import logging
import pytest

from desloc_jax.checkpoints import checksums
from desloc_jax.checkpoints.damage import CheckpointDamaged, damage_of
from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.errors import UserError
from tests.runs import losses, small_config, train_on_two as train


@pytest.fixture
def workdir(after_seven_steps):
  return after_seven_steps


def newest_files(workdir, step):
  folder = workdir / 'checkpoints' / str(step)
  return [folder / name for name in json.loads((folder / checksums.FILE).read_text())]


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


@pytest.mark.parametrize('damage', [pathlib.Path.unlink, truncate, flip])
def test_every_damaged_file_is_found(workdir, damage):
  files = newest_files(workdir, 7)
  assert len(files) >= 5
  for path in files:
    if not path.stat().st_size:
      continue
    content = path.read_bytes()
    damage(path)
    checkpoints = Checkpoints(workdir / 'checkpoints', 2)
    with pytest.raises(CheckpointDamaged, match=f'step 7 is damaged: .*{path.name}'):
      checkpoints.verify(7)
    checkpoints.close()
    path.write_bytes(content)


def test_a_run_falls_back_to_the_checkpoint_before(text, tmp_path, monkeypatch):
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
  options = {'checkpoint.every': 3, 'checkpoint.keep': 3}
  train(small_config(text, **options), tmp_path / 'whole')
  train(small_config(text, **options), tmp_path / 'run')
  flip(max(newest_files(tmp_path / 'run', 12), key=lambda path: path.stat().st_size))
  truncate(max(newest_files(tmp_path / 'run', 9), key=lambda path: path.stat().st_size))
  warnings.clear()
  train(small_config(text, **options), tmp_path / 'run')
  assert [w for w in warnings if 'step 12 is damaged' in w and 'other contents' in w]
  assert [w for w in warnings if 'step 9 is damaged' in w and 'bytes, not' in w]
  assert losses(tmp_path / 'run') == losses(tmp_path / 'whole')
  names = {path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()}
  assert names == {'damaged-12', 'damaged-9', '6', '9', '12'}


def test_without_a_good_checkpoint_nothing_is_touched(text, workdir):
  for path in newest_files(workdir, 7)[:3]:
    truncate(path)
  listing = sorted((p.relative_to(workdir), p.stat().st_mtime) for p in workdir.rglob('*'))
  with pytest.raises(UserError, match=r'all checkpoints in .* are damaged \(steps 7\).*begin anew'):
    train(small_config(text), workdir)
  assert sorted((p.relative_to(workdir), p.stat().st_mtime) for p in workdir.rglob('*')) == listing


def failing(name, error):
  """Returns an opening of files that fails for those of this name."""
  true = pathlib.Path.open

  def open_or_fail(path, *args, **options):
    if path.name == name:
      raise OSError(error, os.strerror(error), str(path))
    return true(path, *args, **options)

  return open_or_fail


@pytest.mark.parametrize('error', [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize('file', ['checksums.json', 'manifest.ocdbt', 'metadata'])
def test_what_cannot_be_opened_is_no_damage(text, workdir, monkeypatch, error, file):
  listing = sorted(workdir.rglob('*'))
  monkeypatch.setattr(pathlib.Path, 'open', failing(file, error))
  monkeypatch.setattr(
    pathlib.Path, 'read_bytes', lambda path: path.open('rb').read() if path.name else b''
  )
  with pytest.raises(UserError, match=rf'cannot be read: {os.strerror(error)} .*{file}.*left as'):
    train(small_config(text), workdir)
  assert sorted(workdir.rglob('*')) == listing


REFUSALS = [
  (ValueError("PERMISSION_DENIED: x [os_error_code='13', y]"), 'Permission denied'),
  (ValueError('INTERNAL: Failed to open: "d/1" [OS error 24: EMFILE]'), 'Too many open files'),
  (TimeoutError(errno.ETIMEDOUT, 'x'), os.strerror(errno.ETIMEDOUT)),
]


@pytest.mark.parametrize(('error', 'reason'), REFUSALS, ids=str)
def test_what_keeps_tensorstore_from_reading_is_no_damage(error, reason):
  with pytest.raises(UserError, match=f'cannot be read: {reason}'), damage_of(pathlib.Path('7')):
    raise error


def test_a_lack_of_memory_is_no_damage():
  for error in (MemoryError(), RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1')):
    with pytest.raises(type(error)), damage_of(pathlib.Path('7')):
      raise error
  for error in (ValueError("NOT_FOUND: [os_error_code='2']"), ValueError('DATA_LOSS'), KeyError(1)):
    with pytest.raises(CheckpointDamaged), damage_of(pathlib.Path('7')):
      raise error


@pytest.mark.parametrize('count', [1, 2, 3, 7])
def test_each_file_is_for_one_process_to_verify(count):
  entries = {f'd/{i}': [size, 0] for i, size in enumerate([9, 1, 1, 4, 5, 0, 3, 9, 2])}
  shares = [checksums.share(entries, count, i) for i in range(count)]
  assert sorted(name for share in shares for name in share) == sorted(entries)
  loads = [sum(size for size, _ in share.values()) for share in shares]
  assert max(loads) - min(loads) <= 9
