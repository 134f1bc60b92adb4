"""Files that are there complete or not at all, also where two processes write the same one."""

import errno
import fcntl
import os

import pytest

from desloc_jax.files import atomic_folder, atomic_write


def test_two_that_write_at_once_do_not_mix(tmp_path):
  path = tmp_path / 'file'
  with atomic_write(path) as first:
    first.write(b'first')
    with atomic_write(path) as second:
      second.write(b'second')
    assert path.read_bytes() == b'second'
  assert path.read_bytes() == b'first' and os.listdir(tmp_path) == ['file']


def test_a_write_that_fails_leaves_nothing(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(b'old')
  with pytest.raises(OSError, match='full.*/file') as raised, atomic_write(path) as file:
    file.write(b'new')
    raise OSError(errno.ENOSPC, 'full')
  assert raised.value.filename == str(path)  # A write that fails does not name the file by itself.
  assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('write', [atomic_write, atomic_folder])
def test_a_folder_that_is_not_there_is_told_by_the_name_of_the_file(write, tmp_path):
  with pytest.raises(FileNotFoundError) as raised, write(tmp_path / 'x' / 'file'):
    pass
  assert raised.value.filename == str(tmp_path / 'x' / 'file')


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
  path, left, held = tmp_path / 'a', tmp_path / '.a.0.partial', tmp_path / '.a.1.partial'
  other = tmp_path / '.b.0.partial'  # Of another file.
  for each in (left, held, other):
    each.write_bytes(b'torn')
  with held.open('rb') as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # By a process that still writes.
    with atomic_write(path) as new:
      new.write(b'whole')
  assert set(os.listdir(tmp_path)) == {'a', held.name, other.name}


def test_permissions_are_those_of_new_files(tmp_path):
  (tmp_path / 'plain').touch()
  with atomic_write(tmp_path / 'file'):
    pass
  modes = {(tmp_path / name).stat().st_mode for name in ('plain', 'file')}
  assert len(modes) == 1


def test_a_folder_is_there_complete_or_not_at_all(tmp_path):
  left, held = tmp_path / '.a.0.partial', tmp_path / '.a.1.partial'
  for each in (left, held):
    each.mkdir()
    (each / 'weights').touch()
  descriptor = os.open(held, os.O_RDONLY)
  fcntl.flock(descriptor, fcntl.LOCK_EX)  # By a process that still writes.
  with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / 'a') as folder:
    (folder / 'weights').touch()
    raise KeyboardInterrupt
  assert os.listdir(tmp_path) == [held.name]
  with atomic_folder(tmp_path / 'a') as folder:
    (folder / 'weights').touch()
  os.close(descriptor)
  assert sorted(os.listdir(tmp_path)) == [held.name, 'a']
  assert os.listdir(tmp_path / 'a') == ['weights']
