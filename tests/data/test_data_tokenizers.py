"""Tokenizers: known encodings, round trips and the training of one."""

import json

from hypothesis import given, strategies as st
import numpy as np
import pytest
import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers, trainers

from desloc_jax.data import (
  load_tokenizer,
  open_source,
  prepare,
  SourceSpec,
  StreamStart,
  train_tokenizer,
  Validation,
)
from desloc_jax.errors import UserError
from desloc_jax.train.setup.open_data import load_data
from tests.runs import small_config


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
  assert load_tokenizer(trained, '<|endoftext|>').fingerprint in prints


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


TEXTS = ['the state of the union </s> is good', 'hello world the end, a b c d'] * 20
SPECIAL = ['<unk>', '</s>', '<pad>']


def learn(model, trainer, pre_tokenizer, decoder, **options):
  tokenizer = hf.Tokenizer(model)
  tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
  tokenizer.train_from_iterator(
    TEXTS, trainer(special_tokens=SPECIAL, show_progress=False, **options)
  )
  return tokenizer


def kinds():
  """A small tokenizer of each model, with pre-tokenisers that keep '</s>' in one piece."""
  metaspace, split = pre_tokenizers.Metaspace(), pre_tokenizers.WhitespaceSplit()
  spaces = decoders.WordPiece(prefix='##', cleanup=False)
  return {
    'unigram': learn(models.Unigram(), trainers.UnigramTrainer, metaspace, decoders.Metaspace(),
                     unk_token='<unk>', vocab_size=60),
    'bpe': learn(models.BPE(unk_token='<unk>'), trainers.BpeTrainer, metaspace,
                 decoders.Metaspace(), vocab_size=200),
    'whole words': learn(models.BPE(unk_token='<unk>', ignore_merges=True), trainers.BpeTrainer,
                         split, decoders.Fuse(), vocab_size=200),
    'wordpiece': learn(models.WordPiece(unk_token='<unk>'), trainers.WordPieceTrainer, split,
                       spaces, vocab_size=120),
    'wordlevel': learn(models.WordLevel(unk_token='<unk>'), trainers.WordLevelTrainer, split,
                       spaces, vocab_size=60),
    'bytes': learn(models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(),
                   vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())),
  }  # fmt: skip


@pytest.fixture(scope='module')
def tokenizers_of_each_kind():
  return kinds()


def saved(tokenizer, folder, **changes):
  """Returns the path of a tokenizer.json with some of its model changed."""
  content = json.loads(tokenizer.to_str())
  content['model'] |= changes
  (folder / 'tokenizer.json').write_text(json.dumps(content))
  return str(folder / 'tokenizer.json')


@pytest.mark.parametrize(
  'kind', ['unigram', 'bpe', 'whole words', 'wordpiece', 'wordlevel', 'bytes']
)
def test_no_text_is_a_special_token(tokenizers_of_each_kind, tmp_path, kind):
  tokenizer = load_tokenizer(saved(tokenizers_of_each_kind[kind], tmp_path))
  end, padding = map(tokenizers_of_each_kind[kind].token_to_id, ('</s>', '<pad>'))
  assert tokenizer.end_of_document == end
  assert tokenizer.decode([end, padding]).replace(' ', '') == '</s><pad>'
  for text in ('</s>', 'the </s> state', 'a</s>', '<pad> b', '</s></s>', 'x <unk> y'):
    ids = tokenizer.encode(text).tolist()
    assert not {end, padding} & set(ids), text
  if kind in ('unigram', 'bpe'):  # What they know they give back, special tokens' names too.
    for text in ('the </s> state', 'hello world'):
      assert tokenizer.decode(tokenizer.encode(text)) == text
  same = tokenizers_of_each_kind[kind].encode('the state of hello', add_special_tokens=False)
  assert tokenizer.encode('the state of hello').tolist() == same.ids


def test_an_ordinary_piece_ends_no_document(tmp_path):
  tokenizer = hf.Tokenizer(models.BPE(unk_token='<unk>'))
  trainer = trainers.BpeTrainer(
    vocab_size=99, special_tokens=['<unk>', '<eos>'], show_progress=False
  )
  tokenizer.train_from_iterator(['</s> </s>'] * 9, trainer)
  path = saved(tokenizer, tmp_path)
  assert tokenizer.token_to_id('</s>') is not None
  assert load_tokenizer(path).end_of_document == tokenizer.token_to_id('<eos>')
  with pytest.raises(UserError, match=r"'</s>' is an ordinary token .* tokens: <unk>, <eos>"):
    load_tokenizer(path, '</s>')
  content = json.loads((tmp_path / 'tokenizer.json').read_text())
  content['added_tokens'] = []
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  with pytest.raises(UserError, match=r'special tokens \(none\)'):
    load_tokenizer(path)


def test_unknown_text_ends_no_document(tokenizers_of_each_kind, tmp_path):
  with pytest.raises(UserError, match="'</s>' is also what unknown text becomes"):
    load_tokenizer(saved(tokenizers_of_each_kind['wordlevel'], tmp_path, unk_token='</s>'))


def test_chance_is_left_out_and_said(tokenizers_of_each_kind, tmp_path):
  plain = load_tokenizer(saved(tokenizers_of_each_kind['bpe'], tmp_path))
  chance = load_tokenizer(saved(tokenizers_of_each_kind['bpe'], tmp_path, dropout=0.5))
  assert plain.notes == [] and len(chance.notes) == 1 and 'dropout of 0.5' in chance.notes[0]
  for _ in range(20):
    assert chance.encode(TEXTS[0]).tolist() == plain.encode(TEXTS[0]).tolist()


def test_dropped_text_is_counted(tokenizers_of_each_kind, tmp_path):
  """By a BPE with no token for what it does not know: of characters, and of bytes."""
  drops = load_tokenizer(saved(tokenizers_of_each_kind['bpe'], tmp_path, unk_token=None))
  found = drops.encode_batch(['the state', 'the 日本 state', '日本'])
  # The mark that Metaspace puts before a text is placed at its first character.
  assert [each.dropped_bytes for each in found] == [0, 6, 3]
  content = json.loads(tokenizers_of_each_kind['bytes'].to_str())
  gone = content['model']['vocab'].pop('æ')  # The byte E6, with which 日 begins.
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  drops = load_tokenizer(str(tmp_path / 'tokenizer.json'))
  found = drops.encode_batch(['the state', 'the 日本日', '\u6000'])
  assert gone and [each.dropped_bytes for each in found] == [0, 3, 1]
  knows = load_tokenizer(saved(tokenizers_of_each_kind['wordlevel'], tmp_path))
  assert [e.unknown for e in knows.encode_batch(['the zzz yyy', 'the'])] == [2, 0]
  assert all(e.dropped_bytes == 0 for e in knows.encode_batch(TEXTS))


@pytest.mark.parametrize('foreign, said', [(0, None), (1, 'drops 3 of '), (40, None)])
def test_a_text_that_is_dropped_is_refused_or_said(
  tokenizers_of_each_kind, tmp_path, capsys, foreign, said
):
  path = saved(tokenizers_of_each_kind['bpe'], tmp_path, unk_token=None)
  (tmp_path / 'text.txt').write_text('the state of the union ' * 40 + '日' * foreign)
  command = [f'--input={tmp_path}/text.txt', f'--output={tmp_path}/out', f'--tokenizer={path}']
  if foreign == 40:
    with pytest.raises(SystemExit):
      prepare.main([*command, '--processes=1'])
    assert 'tokenizer tokenizer.json drops 120 of 1,040 bytes' in capsys.readouterr().err
    assert not (tmp_path / 'out' / 'manifest.json').exists()
    return
  for _ in range(2):  # A finished folder says it again.
    prepare.main([*command, '--processes=1'])
    assert (said or '') in (error := capsys.readouterr().err) and bool(error) == bool(said)


@pytest.mark.parametrize('kind', ['unigram', 'wordpiece', 'bytes'])
def test_bytes_of_a_whole_split_are_those_of_its_text(tokenizers_of_each_kind, tmp_path, kind):
  tokenizer = load_tokenizer(saved(tokenizers_of_each_kind[kind], tmp_path))
  (tmp_path / 'text.jsonl').write_text('\n'.join(json.dumps({'text': t * 3}) for t in TEXTS[:2]))
  packed = open_source(str(tmp_path / 'text.jsonl'), tokenizer, 'train', 1, 0.0)
  sample = Validation([(SourceSpec('text', ''), packed)], tokenizer).samples[0]
  # All tokens but the first are predicted.
  missing = tokenizer.token_bytes[packed[0][0]]
  assert tokenizer.keeps_bytes == (kind == 'bytes')
  total = sample.bytes_per_token * len(packed)
  tolerance = 1e-9 if kind == 'bytes' else 2.0
  assert abs(total + missing - packed.text_bytes) <= tolerance
  assert tokenizer.token_bytes[tokenizer.end_of_document] == 0


def test_a_run_trains_on_a_folder_with_its_own_end_of_document(trained, tmp_path):
  with open(trained, encoding='utf-8') as file:
    content = file.read().replace('<|endoftext|>', '<|stop|>')
  path = tmp_path / 'odd.json'
  path.write_text(content, encoding='utf-8')
  prepare.prepare('sotu', str(tmp_path / 'out'), str(path), 0.2, end_of_document='<|stop|>',
                  where='year:1790-1795')  # fmt: skip
  config = small_config(tmp_path / 'out', **{'data.tokenizer': str(path)})
  with pytest.raises(UserError, match=r'data\.end_of_document'):
    load_data(config, StreamStart(), range(4))
  config.data.end_of_document = '<|stop|>'
  assert load_data(config, StreamStart(), range(4)).tokenizer.end_of_document == 0


def test_another_end_of_document_is_named(tokenizers_of_each_kind, tmp_path):
  path = saved(tokenizers_of_each_kind['bytes'], tmp_path)
  prepare.prepare('sotu', str(tmp_path / 'out'), path, 0.2, end_of_document='<pad>',
                  where='year:1790-1795')  # fmt: skip
  with pytest.raises(
    UserError, match=r"end in '<pad>', not '</s>': set data\.end_of_document='<pad>'"
  ):
    open_source(str(tmp_path / 'out'), load_tokenizer(path), 'train', 16, 0.2)
