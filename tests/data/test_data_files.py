"""Which files of a folder are read: each once, of one split, and what is not read is said."""

import bz2
import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from desloc_jax.data import prepare, read_documents
from desloc_jax.data.reading.corpus_files import find_files
from desloc_jax.errors import UserError

ROWS = [{'id': f'd{i}', 'year': 1900 + i, 'text': f'text {i} é'} for i in range(5)]
LINES = ''.join(json.dumps(row) + '\n' for row in ROWS).encode()
CUT = LINES.index(b'\n') + 1
BOM = b'\xef\xbb\xbf'


def read(path, **options):
  return [tuple(document) for document in read_documents(str(path), **options)]


def names(path):
  return [os.path.basename(name) for name in find_files(str(path)).paths]


def write(folder, *files):
  for name in files:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({'text': name}))
  return folder


def table_bytes(kind):
  table, sink = pa.Table.from_pylist(ROWS), pa.BufferOutputStream()
  if kind == 'parquet':
    pq.write_table(table, sink)
  else:
    make = pa.ipc.new_file if kind == 'file' else pa.ipc.new_stream
    with make(sink, table.schema) as writer:
      writer.write_table(table, max_chunksize=2)
  return sink.getvalue().to_pybytes()


CONTENTS = {
  'a.jsonl': LINES,
  'a.JSONL': LINES,
  'a.ndjson': LINES,
  'a.json': LINES,
  'a.jsonl.gz': gzip.compress(LINES),
  'a.json.gz': gzip.compress(LINES),
  'a.jsonl.xz': lzma.compress(LINES),
  'a.jsonl.bz2': bz2.compress(LINES),
  'a.jsonl.zst': pa.compress(LINES, 'zstd', asbytes=True),
  'a.Json.Zst': pa.compress(json.dumps(ROWS).encode(), 'zstd', asbytes=True),
  'array.json': json.dumps(ROWS, indent=2).encode(),
  'array_with_a_mark.json': BOM + b'\n ' + json.dumps(ROWS).encode(),
  'lines_with_a_mark.json': BOM + b'\n' + LINES,
  'mark.jsonl': BOM + LINES,
  'two_marks.jsonl.gz': gzip.compress(BOM + LINES[:CUT]) + gzip.compress(BOM + LINES[CUT:]),
  'a.parquet': table_bytes('parquet'),
  'a.PARQUET': table_bytes('parquet'),
  'file.arrow': table_bytes('file'),
  'stream.arrow': table_bytes('stream'),
}


@pytest.mark.parametrize('name', CONTENTS)
@pytest.mark.parametrize('in_a_folder', [True, False])
def test_every_format(tmp_path, name, in_a_folder):
  (tmp_path / name).write_bytes(CONTENTS[name])
  path = tmp_path if in_a_folder else tmp_path / name
  assert read(path) == [(row['id'], row['text']) for row in ROWS]
  assert [i for i, _ in read(path, where='year:1901-1903')] == ['d1', 'd2', 'd3']
  if name.endswith(('gz', 'xz', 'bz2', 'zst', 'Zst', 'parquet', 'PARQUET')):
    (tmp_path / name).write_bytes(CONTENTS[name][:-9])
    with pytest.raises(UserError, match='is unreadable or damaged'):
      read(path)


@pytest.mark.parametrize('name, pack', [
  ('a.txt', bytes), ('a.TXT', bytes), ('a.txt.gz', gzip.compress), ('a.Txt.XZ', lzma.compress),
  ('a.txt.bz2', bz2.compress), ('a.txt.zst', lambda x: pa.compress(x, 'zstd', asbytes=True)),
])  # fmt: skip
def test_text_without_its_mark(tmp_path, name, pack):
  for content in (BOM + 'né\n'.encode(), 'né\n'.encode()):
    (tmp_path / name).write_bytes(pack(content))
    assert read(tmp_path) == [(str(tmp_path / name), 'né\n')]


def test_a_lone_object_is_a_record(tmp_path):
  (tmp_path / 'a.json').write_text(json.dumps(ROWS[0], indent=2))
  assert read(tmp_path) == [('d0', 'text 0 é')]
  (tmp_path / 'a.json').write_text('{"text": "a"')
  with pytest.raises(UserError, match=r'a\.json is not JSON'):
    read(tmp_path)


def test_what_is_not_read_is_said(tmp_path):
  write(tmp_path, 'a.txt', 'b.csv', 'c.csv', 'd.md', 'README.md', 'dataset_info.json', 'e.npy',
        'state.json', 'cache-12.arrow', '_SUCCESS', '.git/x.txt', '.hidden.txt')  # fmt: skip
  told = []
  assert len(list(read_documents(str(tmp_path), tell=told.append))) == 1
  hidden, others = told
  assert '2 hidden are not read' in hidden and '.git' in hidden and '.hidden.txt' in hidden
  assert others.startswith(f'{tmp_path}: 9 of 10 files are not read: ')
  for part in ('2 .csv', '2 .md', '1 .npy', '3 about data', '1 without a suffix'):
    assert part in others
  (tmp_path / 'a.txt').unlink()
  with pytest.raises(UserError, match=r'neither a manifest\.json.* 2 \.csv'):
    read(tmp_path)


def test_each_real_file_is_read_once(tmp_path):
  write(tmp_path / 'c', 'a.txt', 'deep/b.txt')
  (tmp_path / 'c' / 'latest').symlink_to('.')
  (tmp_path / 'c' / 'deep' / 'up').symlink_to('..')
  (tmp_path / 'c' / 'again.txt').symlink_to('a.txt')
  (tmp_path / 'elsewhere').mkdir()
  write(tmp_path / 'elsewhere', 'linked.txt')
  (tmp_path / 'c' / 'other').symlink_to(tmp_path / 'elsewhere')
  found = find_files(str(tmp_path / 'c'))
  assert [os.path.basename(p) for p in found.paths] == ['a.txt', 'b.txt', 'linked.txt']
  assert len(found.notes) == 1 and '1 lead to files that are read already' in found.notes[0]
  assert len(names(tmp_path / 'c' / '**' / '*.txt')) == 3


def test_a_link_to_nothing_is_no_empty_file(tmp_path):
  write(tmp_path, 'a.txt')
  (tmp_path / 'b.txt').symlink_to('gone')
  with pytest.raises(UserError, match=r'b\.txt is unreadable'):
    read(tmp_path)


SNAPSHOTS = [
  ('train-00000-of-00002.jsonl', 'train-00001-of-00002.jsonl', 'test-00000-of-00001.jsonl',
   'validation-00000-of-00001.jsonl'),
  ('data/train/0.jsonl', 'data/train/1.jsonl', 'data/test/0.jsonl', 'data/valid/0.jsonl'),
  ('x/c4-train.00000.json', 'x/c4-train.00001.json', 'x/c4_test.json', 'dev.json'),
]  # fmt: skip


@pytest.mark.parametrize('files', SNAPSHOTS, ids=lambda files: files[0])
def test_a_snapshot_gives_its_training_split(tmp_path, files):
  write(tmp_path, *files)
  base = lambda *members: [os.path.basename(name) for name in members]
  found = find_files(str(tmp_path))
  assert [os.path.basename(p) for p in found.paths] == base(*files[:2])
  assert len(found.notes) == 1 and 'only the train split is read, 2 of 4 files' in found.notes[0]
  assert str(tmp_path / files[2]) in found.notes[0] and str(tmp_path / files[3]) in found.notes[0]
  assert names(f'{tmp_path}:test') == base(files[2])
  assert names(f'{tmp_path}:validation') == base(files[3])
  assert sorted(names(f'{tmp_path}:all')) == sorted(base(*files))
  assert len(names(tmp_path / '**' / '*.json*')) == 2
  with pytest.raises(UserError, match="split 'test'; there are train"):
    for name in files[2:]:
      (tmp_path / name).unlink()
    find_files(f'{tmp_path}:test')


def test_a_cache_of_several_revisions_is_refused(tmp_path):
  write(tmp_path, 'snapshots/abc/train.txt')
  assert len(names(tmp_path)) == 1
  write(tmp_path, 'snapshots/def/train.txt')
  with pytest.raises(UserError, match='holds 2 revisions.*snapshots/abc, .*snapshots/def'):
    find_files(str(tmp_path))
  assert len(names(tmp_path / 'snapshots' / 'def')) == 1


def test_a_lone_split_is_read_and_names_above_the_path_mean_nothing(tmp_path):
  write(tmp_path / 'test' / 'train', 'test-0.txt', 'test-1.txt')
  assert find_files(str(tmp_path / 'test' / 'train')).notes == []
  assert (
    len(names(tmp_path / 'test' / 'train')) == len(names(tmp_path / 'test' / 'train' / '*')) == 2
  )
  write(tmp_path / 'test' / 'train', 'novel.txt')
  found = find_files(str(tmp_path / 'test' / 'train'))
  assert len(found.paths) == 3 and '2 are named as of a split and are read too' in found.notes[0]


def test_prepare_says_it_too(tmp_path, capsys):
  write(tmp_path / 'in', 'train.jsonl', 'test.jsonl', 'a.csv')
  prepare.main([f'--input={tmp_path}/in', f'--output={tmp_path}/out', '--processes=1'])
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2 and '1 of 3 files are not read: 1 .csv' in lines[0]
  assert 'only the train split is read, 1 of 2 files' in lines[1]


def test_what_is_empty_is_said(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "a"}\n{"text": ""}\n\n{"text": ""}\n')
  (tmp_path / 'b.jsonl').touch()
  (tmp_path / 'c.txt').touch()
  (tmp_path / 'd.jsonl').write_text('\n')
  told = []
  assert [d.text for d in read_documents(str(tmp_path), tell=told.append)] == ['a']
  empty = ', '.join(str(tmp_path / name) for name in ('b.jsonl', 'd.jsonl'))
  assert told == [
    f'{tmp_path}: 2 of 4 files are empty ({empty}).',
    f'{tmp_path}: 3 records have no text and are left out.',
  ]


def test_a_file_without_a_suffix_is_no_other_type(tmp_path):
  (tmp_path / 'notes').write_text('text')
  with pytest.raises(UserError, match="file type of .*notes: '' is unknown"):
    list(read_documents(str(tmp_path / 'notes')))
