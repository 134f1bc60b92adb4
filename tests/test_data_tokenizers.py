"""Tokenizers: known encodings, round trips and the training of one."""

import json

from hypothesis import given, strategies as st
import numpy as np
import pytest

from desloc_jax.data import load_tokenizer, train_tokenizer
from desloc_jax.errors import UserError


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json')
  train_tokenizer.main(['--input=sotu', '--vocab_size=400', f'--output={path}'])
  return path


def test_gpt2_known_encodings():
  tokenizer = load_tokenizer('gpt2')
  assert (tokenizer.vocab_size, tokenizer.end_of_document) == (50257, 50256)
  assert tokenizer.encode('Hello world').tolist() == [15496, 995]
  assert tokenizer.encode("I'm 2 days late,\n\n  ok?").tolist() == [
    40,
    1101,
    362,
    1528,
    2739,
    11,
    628,
    220,
    12876,
    30,
  ]
  assert tokenizer.dtype == np.uint16


def test_bytes():
  tokenizer = load_tokenizer('bytes')
  assert (tokenizer.vocab_size, tokenizer.end_of_document) == (257, 256)
  assert tokenizer.encode('aé').tolist() == [97, 0xC3, 0xA9]
  assert tokenizer.decode([97, 256, 0xC3]) == 'a<|endoftext|>\ufffd'


@pytest.mark.parametrize('name', ['bytes', 'gpt2'])
@given(text=st.text())
def test_round_trip(name, text):
  tokenizer = load_tokenizer(name)
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert tokenizer.end_of_document not in ids


@given(text=st.text())
def test_round_trip_of_a_trained_tokenizer(trained, text):
  tokenizer = load_tokenizer(trained)
  assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize('name', ['bytes', 'gpt2'])
def test_special_tokens_in_text_are_text(name):
  tokenizer = load_tokenizer(name)
  ids = tokenizer.encode('a<|endoftext|>b')
  assert tokenizer.end_of_document not in ids
  assert tokenizer.decode(ids) == 'a<|endoftext|>b'


def test_trained_tokenizer(trained):
  tokenizer = load_tokenizer(trained)
  assert tokenizer.vocab_size == 400
  assert tokenizer.decode([tokenizer.end_of_document]) == '<|endoftext|>'
  assert tokenizer.end_of_document not in tokenizer.encode('x<|endoftext|>')
  assert len(tokenizer.encode('the government')) < len('the government')


def test_fingerprints_tell_tokenizers_apart(trained):
  specs = ('bytes', 'gpt2', trained)
  prints = {load_tokenizer(spec).fingerprint for spec in specs}
  assert len(prints) == 3
  assert load_tokenizer(trained, end_of_document='a').fingerprint not in prints


def test_file_adds_no_tokens_of_its_own(trained, tmp_path):
  with open(trained, encoding='utf-8') as file:
    content = json.load(file)
  content['truncation'] = {
    'direction': 'Right',
    'max_length': 2,
    'strategy': 'LongestFirst',
    'stride': 0,
  }
  content['padding'] = {
    'strategy': {'Fixed': 50},
    'direction': 'Right',
    'pad_to_multiple_of': None,
    'pad_id': 0,
    'pad_type_id': 0,
    'pad_token': '<|endoftext|>',
  }
  path = tmp_path / 'padded.json'
  path.write_text(json.dumps(content), encoding='utf-8')
  text = 'fellow citizens of the Senate'
  assert load_tokenizer(str(path)).encode(text).tolist() == (
    load_tokenizer(trained).encode(text).tolist()
  )


def test_file_without_a_usual_end(trained, tmp_path):
  with open(trained, encoding='utf-8') as file:
    content = file.read().replace('<|endoftext|>', '<|stop|>')
  path = tmp_path / 'odd.json'
  path.write_text(content, encoding='utf-8')
  with pytest.raises(UserError, match=r'odd\.json has no end-of-document token'):
    load_tokenizer(str(path))
  assert load_tokenizer(str(path), '<|stop|>').end_of_document == 0
  with pytest.raises(UserError, match=r"'<\|stopp\|>' is unknown. Did you mean '<\|stop\|>'"):
    load_tokenizer(str(path), '<|stopp|>')


def test_bad_specs(tmp_path):
  with pytest.raises(UserError, match="'gtp2' is unknown. Did you mean 'gpt2'"):
    load_tokenizer('gtp2')
  with pytest.raises(UserError, match='only for a tokenizer.json'):
    load_tokenizer('bytes', end_of_document='</s>')
  broken = tmp_path / 'tokenizer.json'
  broken.write_text('{"model":')
  with pytest.raises(UserError, match=r'tokenizer\.json is not a Hugging Face'):
    load_tokenizer(str(broken))


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--input=sotu', '--vocab_size=256'], 'vocab_size is 256, expected at least 257'),
    (['--input=nowhere.txt'], "'nowhere.txt'"),
    (['--input=sotu', '--output=no/such/folder/t.json'], 'there is no folder no/such/folder'),
  ],
)
def test_training_errors_are_one_line(arguments, message, tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    train_tokenizer.main([f'--output={tmp_path}/t.json', *arguments])
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
  assert not list(tmp_path.iterdir())
