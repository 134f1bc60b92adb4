"""A checkpoint's files are read once for their checksums, each by the process that wrote it."""

import json

from desloc_jax.checkpoints import checksums
from tests.runs import small_config, train_on_two


def read_files(monkeypatch):
  read, crc = [], checksums._crc
  monkeypatch.setattr(checksums, '_crc', lambda path: read.append(path) or crc(path))
  return read


def test_a_save_reads_each_file_once(text, tmp_path, monkeypatch):
  read = read_files(monkeypatch)
  train_on_two(small_config(text, stop_at=1, **{'eval.every': 0}), tmp_path / 'run')
  folder = tmp_path / 'run' / 'checkpoints' / '1'
  entries = json.loads((folder / checksums.FILE).read_text())
  names = [name.partition('/')[2] for name in entries]
  assert len(names) >= 5 and len(read) == len(names)
  assert all(any(path.as_posix().endswith(name) for path in read) for name in names)
  assert {path.name for path in folder.iterdir() if path.suffix == '.json'} == {checksums.FILE}
  assert checksums.find_damage(folder) is None


def test_what_another_process_noted_is_not_read_again(tmp_path, monkeypatch):
  for name in ('state/ocdbt.process_0/a', 'state/ocdbt.process_1/b', 'state/merged', 'x/no'):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
  for index in range(2):
    own = tmp_path / 'state' / f'ocdbt.process_{index}'
    checksums.note(tmp_path, index, 'state', own)
  (tmp_path / 'state/ocdbt.process_0/a').write_text('as it is when all have written')
  read = read_files(monkeypatch)
  checksums.sign(tmp_path, ['state'], 2)
  assert {path.name for path in read} == {'a', 'merged'}
  assert set(checksums.read_entries(tmp_path)) == {
    'state/ocdbt.process_0/a', 'state/ocdbt.process_1/b', 'state/merged'
  }  # fmt: skip
  assert checksums.find_damage(tmp_path) is None
  assert sorted(path.name for path in tmp_path.iterdir()) == [checksums.FILE, 'state', 'x']
