"""Reading documents of every format, and holding some of them out."""

import gzip
import hashlib
import importlib.resources
import json
import lzma
import sys
import types

from hypothesis import given, strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from desloc_jax.data import encoding, is_held_out, load_tokenizer, read_documents
from desloc_jax.errors import UserError

ROWS = [{'id': f'd{i}', 'year': 1900 + i, 'text': f'text {i} é'} for i in range(5)]
LINES = ''.join(json.dumps(row) + '\n' for row in ROWS).encode()


def read(path, **options):
  return [tuple(document) for document in read_documents(str(path), **options)]


def test_sotu():
  packed = (importlib.resources.files('desloc_jax.data') / 'sotu.jsonl.xz').read_bytes()
  assert hashlib.sha256(lzma.decompress(packed)).hexdigest() == (
    '04370ace61c972e24bac61a77f9836ccf5acd4d4190b0b4d3fed791fa467b4af'
  )
  assert len(read('sotu')) == 249
  early, late = (read('sotu', where=f'year:{years}') for years in ('1790-1899', '1900-2100'))
  assert early + late == read('sotu')
  assert early[0][0] == '1790-Washington-1'


@pytest.mark.parametrize(
  'name, content',
  [
    ('a.jsonl', LINES),
    ('a.jsonl.gz', gzip.compress(LINES, mtime=0)),
    ('a.jsonl.xz', lzma.compress(LINES)),
  ],
)
def test_json_lines(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  assert read(tmp_path / name) == [(row['id'], row['text']) for row in ROWS]
  assert [i for i, _ in read(tmp_path / name, where='year:1901-1903')] == ['d1', 'd2', 'd3']


def test_parquet(tmp_path):
  pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / 'a.parquet')
  assert read(tmp_path / 'a.parquet') == [(row['id'], row['text']) for row in ROWS]
  assert [i for i, _ in read(tmp_path / 'a.parquet', where='year:1904-1950')] == ['d4']
  with pytest.raises(UserError, match="'txet' is unknown. Did you mean 'text'"):
    read(tmp_path / 'a.parquet', text_column='txet')
  (tmp_path / 'a.parquet').write_bytes(b'PAR1 no')
  with pytest.raises(UserError, match=r'a\.parquet is unreadable or damaged'):
    read(tmp_path / 'a.parquet')


def test_folders_and_patterns_are_sorted(tmp_path):
  (tmp_path / 'deep').mkdir()
  for name in ('b.txt', 'a.txt', 'deep/c.txt', 'empty.txt', 'notes.md'):
    (tmp_path / name).write_text('' if name == 'empty.txt' else name)
  assert [text for _, text in read(tmp_path)] == ['a.txt', 'b.txt', 'deep/c.txt']
  assert [text for _, text in read(tmp_path / '[ab].txt')] == ['a.txt', 'b.txt']


def test_hugging_face(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(UserError, match='pip install datasets'):
    read('hf:wikitext')
  calls = []

  def load_dataset(*arguments, **options):
    calls.append((arguments, options))
    if arguments[0] == 'missing':
      raise ConnectionError('no route')
    return ROWS

  fake = types.SimpleNamespace(load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, 'datasets', fake)
  assert read('hf:wikitext:raw:test') == [(row['id'], row['text']) for row in ROWS]
  assert calls == [(('wikitext', 'raw'), {'split': 'test', 'streaming': True})]
  read('hf:wikitext@5f3a2c:raw')
  assert calls[1] == (
    ('wikitext', 'raw'), {'split': 'train', 'streaming': True, 'revision': '5f3a2c'}
  )  # fmt: skip
  with pytest.raises(UserError, match=r'hf:missing cannot be read \(ConnectionError: no route\)'):
    read('hf:missing')


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('a.jsonl', b'{"text": "a"}\n{"text": \n', r'a\.jsonl, line 2 is not JSON'),
    ('a.jsonl', b'{"text": "a"}\n{"text": "\xff"}\n', r'a\.jsonl, line 2 is not UTF-8'),
    ('a.jsonl', b'[1]\n', r'a\.jsonl, line 1 is a JSON list, expected an object'),
    ('a.jsonl', b'{"text": 3}\n', r'a\.jsonl:1: text is 3, expected a text'),
    ('a.jsonl', b'{"txt": "a"}\n', r"a\.jsonl:1: field 'text' is unknown. Did you mean 'txt'"),
    ('a.jsonl', b'{"text": "\\ud800"}\n', r'a\.jsonl:1: text is not Unicode'),
    ('a.txt', b'one\ntwo \xff', r'a\.txt, line 2 is not UTF-8'),
    ('a.jsonl.xz', b'not xz', r'a\.jsonl\.xz is unreadable or damaged after line 0'),
    ('a.jsonl.xz', lzma.compress(LINES)[:-20], r'a\.jsonl\.xz is unreadable or damaged'),
    ('a.jsonl.gz', gzip.compress(LINES, mtime=0)[:-9], r'a\.jsonl\.gz is unreadable or damaged'),
    ('a.csv', b'text\n', r"a\.csv: '\.csv' is unknown"),
  ],
)
def test_damage_names_the_file(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=message):
    read(tmp_path / name)


@pytest.mark.parametrize(
  'where, message',
  [
    ('year', 'expected FIELD:LOW-HIGH'),
    ('year:1900-1800', 'range is empty'),
    ('yaer:1900-1950', "'yaer' is unknown. Did you mean 'year'"),
    ('id:1-2', "id is 'd0', expected a number"),
  ],
)
def test_bad_where(tmp_path, where, message):
  (tmp_path / 'a.jsonl').write_bytes(LINES)
  with pytest.raises(UserError, match=message):
    read(tmp_path / 'a.jsonl', where=where)


def test_missing_path_names_the_nearest(tmp_path):
  (tmp_path / 'corpus.txt').write_text('a')
  with pytest.raises(UserError, match=r'Did you mean .*corpus\.txt'):
    read(tmp_path / 'corpsu.txt')
  with pytest.raises(UserError, match=r'Did you mean sotu\?'):
    read('sout')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='neither a manifest.json'):
    read(tmp_path / 'empty')


@given(texts=st.lists(st.text(min_size=1), min_size=1), seed=st.integers(0, 99))
def test_split_depends_on_the_text_alone(texts, seed):
  tokenizer = load_tokenizer('bytes')
  order = np.random.default_rng(seed).permutation(len(texts))
  straight = encoding.encode_documents(texts, tokenizer, 0.5)
  shuffled = encoding.encode_documents([texts[i] for i in order], tokenizer, 0.5)
  assert [straight[i].split for i in order] == [document.split for document in shuffled]
  sides = {
    split: {tokenizer.decode(d.tokens) for d in straight if d.split == split}
    for split in ('train', 'validation')
  }
  assert not sides['train'] & sides['validation']


def test_split_has_the_fraction_and_grows_with_it():
  texts = [f'document {i}' for i in range(4000)]
  held = {
    fraction: {text for text in texts if is_held_out(text, fraction)}
    for fraction in (0.0, 0.1, 0.3)
  }
  assert not held[0.0]
  assert held[0.1] < held[0.3]
  assert abs(len(held[0.1]) / len(texts) - 0.1) < 0.02


def test_batches_keep_every_text_in_order():
  texts = ['x' * size for size in (1, 2**19, 3, 2**17, 2**17, 5)]
  batches = list(encoding.batch_texts(texts))
  assert sum(batches, []) == texts
  assert [len(batch) for batch in batches] == [2, 3, 1]
