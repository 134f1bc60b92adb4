"""Packing tokens into sequences, from memory and from shards on disk."""

import json
import os

from hypothesis import given, strategies as st
import numpy as np
import pytest

from desloc_jax.data import (
  fingerprint,
  load_tokenizer,
  open_source,
  PackedSequences,
  prepare,
  read_manifest,
  sources,
  SourceSpec,
  verify_shards,
)
from desloc_jax.errors import UserError

BYTES = load_tokenizer('bytes')


def pack(arrays, seq_len, vocab_size=2**16):
  return PackedSequences(
    arrays,
    label='test',
    names=[f'shard {i}' for i in range(len(arrays))],
    seq_len=seq_len,
    vocab_size=vocab_size,
    documents=1,
    text_bytes=1,
    fingerprint='',
  )


@pytest.fixture
def corpus(tmp_path):
  folder = tmp_path / 'corpus'
  folder.mkdir()
  for i in range(40):
    (folder / f'{i:02d}.txt').write_text(f'text {i} ' * (i + 1))
  return str(folder)


@pytest.fixture
def prepared(corpus, tmp_path):
  prepare.prepare(corpus, str(tmp_path / 'prepared'), 'bytes', 0.2, 1500)
  return tmp_path / 'prepared'


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), seq_len=st.integers(1, 25))
def test_every_token_is_predicted_once(sizes, seq_len):
  stream = np.arange(sum(sizes), dtype=np.uint16)
  arrays = np.split(stream, np.cumsum(sizes)[:-1])
  if len(stream) < seq_len + 1:
    with pytest.raises(UserError, match=f'{len(stream)} tokens, .* needs {seq_len + 1}'):
      pack(arrays, seq_len)
    return
  packed = pack(arrays, seq_len)
  items = [packed[i] for i in range(len(packed))]
  assert all(item.dtype == np.int32 and item.shape == (seq_len + 1,) for item in items)
  # The tail that is dropped is shorter than a sequence.
  used = len(items) * seq_len
  assert used <= len(stream) - 1 < used + seq_len
  np.testing.assert_array_equal(np.concatenate([item[:-1] for item in items]), stream[:used])
  np.testing.assert_array_equal(np.concatenate([item[1:] for item in items]), stream[1 : used + 1])
  with pytest.raises(IndexError):
    packed[len(packed)]


def test_bad_token_names_shard_position_and_id():
  arrays = [np.arange(10, dtype=np.uint16), np.array([1, 2, 300, 4], np.uint16)]
  packed = pack(arrays, 4, vocab_size=257)
  packed[1]
  with pytest.raises(UserError, match='shard 1 has token id 300 at position 2, .* size 257'):
    packed[2]


def test_text_and_shards_give_the_same_sequences(corpus, prepared):
  assert len(read_manifest(str(prepared)).of_split('train')) > 2
  for split in ('train', 'validation'):
    text = open_source(corpus, BYTES, split, 16, 0.2)
    shards = open_source(str(prepared), BYTES, split, 16, 0.2)
    assert len(text) == len(shards) > 10
    np.testing.assert_array_equal(
      [*map(text.__getitem__, range(len(text)))], [*map(shards.__getitem__, range(len(shards)))]
    )
    for name in ('tokens', 'documents', 'text_bytes', 'vocab_size'):
      assert getattr(text, name) == getattr(shards, name)
    assert text.tokens == text.text_bytes + text.documents


def test_text_is_tokenised_once(corpus, monkeypatch):
  calls = []
  read = sources.documents.read_documents
  monkeypatch.setattr(
    sources.documents, 'read_documents', lambda *given: calls.append(given) or read(*given)
  )
  for split in ('train', 'validation'):
    open_source(corpus, BYTES, split, 16, 0.25)
  assert len(calls) == 1


def test_open_errors(corpus, prepared):
  with pytest.raises(UserError, match=r'prepared with tokenizer bytes .* configured one is gpt2'):
    open_source(str(prepared), load_tokenizer('gpt2'), 'train', 16, 0.2)
  with pytest.raises(UserError, match='already tokenised'):
    open_source(str(prepared), BYTES, 'train', 16, 0.2, where='year:1-2')
  with pytest.raises(UserError, match="Did you mean 'train'"):
    open_source(corpus, BYTES, 'trian', 16, 0.2)
  with pytest.raises(UserError, match=r'\(validation\) has 0 tokens, .* needs 17'):
    open_source(corpus, BYTES, 'validation', 16, 0.0)
  with pytest.raises(UserError, match='validation_fraction is 1.5'):
    open_source(corpus, BYTES, 'train', 16, 1.5)


@pytest.mark.parametrize(
  'damage, message',
  [
    (lambda path: path.unlink(), 'is missing or damaged'),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), 'is missing or damaged'),
    (lambda path: path.write_bytes(b''), 'is missing or damaged'),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b'\7'), 'was changed'),
    (lambda path: np.save(path, np.zeros(5, np.uint16)), r'is an array \(5,\) of uint16, expected'),
    (lambda path: np.save(path, np.array([{}]), allow_pickle=True), 'is missing or damaged'),
  ],
)
def test_damaged_shard_is_found(prepared, damage, message):
  verify_shards(str(prepared), read_manifest(str(prepared)), progress=False)
  damage(prepared / 'train_00001.npy')
  with pytest.raises(UserError, match=rf'train_00001\.npy {message}'):
    verify_shards(str(prepared), read_manifest(str(prepared)), progress=False)
  with pytest.raises(UserError, match=rf'train_00001\.npy {message}'):
    open_source(str(prepared), BYTES, 'train', 16, 0.2)
  open_source(str(prepared), BYTES, 'validation', 16, 0.2)


@pytest.mark.parametrize('kept', [0, 200])
def test_a_shard_that_is_cut_off_while_it_is_read_is_told(prepared, kept):
  """A memory-mapped one would end the process by SIGBUS."""
  packed = open_source(str(prepared), BYTES, 'train', 16, 0.2)
  path = prepared / 'train_00000.npy'
  before = packed[len(packed) - 1]
  os.truncate(path, kept)
  with pytest.raises(
    UserError, match=f'{path} was cut off after it was opened: it ends before tok'
  ):
    [*map(packed.__getitem__, range(len(packed)))]
  path.unlink()  # What is open stays whole.
  if len(read_manifest(str(prepared)).of_split('train')) > 1:
    np.testing.assert_array_equal(packed[len(packed) - 1], before)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda content: content['shards'][0].update(file='../train_00000.npy'), 'not a plain'),
    (lambda content: content['shards'][0].update(file='/etc/train.npy'), 'not a plain'),
    (lambda content: content['shards'][0].update(max_token=257), 'token id 257'),
    (lambda content: content['shards'][0].update(tokens='many'), "tokens is 'many', expected int"),
    (lambda content: content['shards'][0].update(split='test'), "'test' is unknown"),
    (lambda content: content.update(version=2), r"expected \('desloc_jax tokens', 1\)"),
    (lambda content: content.update(shards=None), 'shards is None, expected a list'),
    (lambda content: content.pop('tokenizer'), 'tokenizer is None, expected a JSON object'),
  ],
)
def test_bad_manifest(prepared, change, message):
  path = prepared / 'manifest.json'
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match=rf'manifest\.json.*{message}'):
    read_manifest(str(prepared))


def test_torn_manifest(prepared):
  path = prepared / 'manifest.json'
  path.write_text(path.read_text()[:100])
  with pytest.raises(UserError, match='no readable manifest'):
    read_manifest(str(prepared))


def test_fingerprint_follows_the_content(corpus, prepared, tmp_path):
  def of(path, split='train', seq_len=16, name='a', **options):
    return fingerprint(
      [(SourceSpec(name, path, **options), open_source(path, BYTES, split, seq_len, 0.2))]
    )

  same = of(str(prepared))
  prepared.rename(tmp_path / 'moved')
  assert of(str(tmp_path / 'moved'), weight=2.0) == same
  prepare.prepare(corpus, str(tmp_path / 'other'), 'bytes', 0.2, 900)
  others = [
    of(str(tmp_path / 'moved'), split='validation'),
    of(str(tmp_path / 'other')),
    of(str(tmp_path / 'moved'), seq_len=8),
    of(str(tmp_path / 'moved'), name='b'),
    of(corpus),
  ]
  assert len({same, *others}) == 6
