"""Data that moves, and mixtures that change on purpose."""

import json
import shutil

import numpy as np
import pytest

from desloc_jax.checkpoints import checksums
from desloc_jax.data.prepare import main as prepare
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.train.setup.open_data import open_texts
from tests.runs import losses, small_config, train_on_two as train, write_text

ALLOW = {'restore.allow': 'data'}


def sources(config, **paths):
  """Returns the config with these sources of weight 1 in place of its own."""
  with config.unlocked():
    del config.data.sources['text']
    for name, path in paths.items():
      config.data.sources[name] = {
        'path': str(path), 'weight': 1.0, 'worker_weights': (), 'where': ''
      }  # fmt: skip
  return config


@pytest.fixture
def other(tmp_path):
  folder = write_text(tmp_path / 'other', words=310)
  return folder


@pytest.mark.parametrize('place', ['moved', 'moved/', 'link', '../{name}/moved'])
def test_a_moved_folder_is_the_same_data(text, after_seven_steps, tmp_path, monkeypatch, place):
  reference = shutil.copytree(after_seven_steps, tmp_path / 'reference')
  shutil.copytree(text, tmp_path / 'moved')
  (tmp_path / 'link').symlink_to(tmp_path / 'moved')
  monkeypatch.chdir(tmp_path)
  train(small_config(place.format(name=tmp_path.name), stop_at=9), after_seven_steps)
  train(small_config(text, stop_at=9), reference)
  assert losses(after_seven_steps) == losses(reference)
  assert not [line for line in read_metrics(after_seven_steps) if 'restored' in line]


def test_another_spelling_of_the_tokenizer_is_the_same(tmp_path, text):
  from desloc_jax.data.train_tokenizer import main as train_tokenizer

  train_tokenizer([f'--input={text}', f'--output={tmp_path}/t.json', '--vocab_size=300'])
  shutil.copy(tmp_path / 't.json', tmp_path / 'u.json')
  options = {'data.tokenizer': str(tmp_path / 't.json'), 'stop_at': 2}
  train(small_config(text, **options), tmp_path / 'run')
  options |= {'data.tokenizer': f'{tmp_path}/./u.json', 'stop_at': 3}
  assert train(small_config(text, **options), tmp_path / 'run')['steps'] == 3
  options |= {'data.tokenizer': 'bytes', 'stop_at': 4, **ALLOW}
  with pytest.raises(UserError, match=r'the tokenizer \(was .*u.json.*bytes.*encodes other ids'):
    train(small_config(text, **options), tmp_path / 'run')


def test_other_text_is_refused_and_may_be_permitted(after_seven_steps, other):
  with pytest.raises(UserError, match=r'text has other text, .*restore.allow=data'):
    train(small_config(other), after_seven_steps)
  train(small_config(other, stop_at=8, **ALLOW), after_seven_steps)
  line = read_metrics(after_seven_steps)[-2]
  assert 'source text has other text, and begins anew after 56 sequences' in line['restored']
  position = after_seven_steps / 'checkpoints' / '8' / 'position' / 'metadata'
  assert json.loads(position.read_text())['next']['consumed'] == {'text': 8}
  assert train(small_config(other, stop_at=9), after_seven_steps)['steps'] == 9  # Its own now.


def test_sources_come_go_and_are_renamed(text, after_seven_steps, tmp_path, other):
  third = write_text(tmp_path / 'third', words=320)
  with pytest.raises(UserError, match=r'data.sources.code.weight .*restore.allow=.*data'):
    train(sources(small_config(text), text=text, code=other), after_seven_steps)
  config = sources(small_config(text, stop_at=8, **ALLOW), text=text, code=other)
  train(config, after_seven_steps)
  position = after_seven_steps / 'checkpoints' / '{}' / 'position' / 'metadata'
  read = lambda step: json.loads(open(str(position).format(step)).read())
  first = read(8)
  assert first['segment']['consumed'] == {'code': 0, 'text': 56}
  # The old source keeps its order though another comes before it.
  assert first['segment']['orders'] == {'code': 1, 'text': 0}
  assert sum(first['next']['consumed'].values()) == 64
  config = sources(small_config(text, stop_at=9, **ALLOW), prose=text, other=third)
  train(config, after_seven_steps)
  second = read(9)
  assert second['segment']['consumed'] == {'other': 0, 'prose': first['next']['consumed']['text']}
  assert second['segment']['orders'] == {'other': 2, 'prose': 0}
  said = read_metrics(after_seven_steps)[-2]['restored']
  gone = first['next']['consumed']['code']
  assert f'source code is left out after {gone} sequences' in said
  assert 'source prose goes on as source text' in said and 'source other is new' in said


def test_weights_may_change_on_purpose(text, other, tmp_path):
  train(sources(small_config(text, stop_at=3), a=text, b=other), tmp_path / 'run')
  config = sources(small_config(text, stop_at=4), a=text, b=other)
  config.data.sources.a.weight = 3.0
  with pytest.raises(UserError, match=r'data.sources.a.weight \(was 1.0, is 3.0\).*allow=.*data'):
    train(config, tmp_path / 'run')
  config.restore.allow = 'data'
  train(config, tmp_path / 'run')
  assert 'data.sources.a.weight (was 1.0, is 3.0)' in read_metrics(tmp_path / 'run')[-2]['restored']


@pytest.mark.parametrize('fits', [True, False])
def test_checkpoints_of_before_know_only_one_hash(text, after_seven_steps, other, fits):
  folder = after_seven_steps / 'checkpoints' / '7'
  path = folder / 'position' / 'metadata'
  position = json.loads(path.read_text())
  for name in ('contents', 'tokenizer'):
    del position[name]
  del position['next']['orders'], position['segment']['orders']
  path.write_text(json.dumps(position))
  checksums.sign(folder, ('state', 'position'), 1)
  if fits:
    assert train(small_config(text, stop_at=8), after_seven_steps)['steps'] == 8
    return
  with pytest.raises(UserError, match='the data has changed'):
    train(small_config(other), after_seven_steps)
  config = sources(small_config(text, stop_at=8, **ALLOW), text=text, code=other)
  train(config, after_seven_steps)
  assert 'source code is new' in read_metrics(after_seven_steps)[-2]['restored']


def test_shards_are_hashed_when_asked_for_and_their_sizes_always(text, tmp_path, capsys):
  prepare([f'--input={text}', f'--output={tmp_path}/tokens', '--tokenizer=bytes',
           '--validation_fraction=0.2', '--processes=1'])  # fmt: skip
  config = small_config(tmp_path / 'tokens')
  open_texts(config)
  shard = next((tmp_path / 'tokens').glob('train_*.npy'))
  tokens = np.load(shard, mmap_mode='r+')
  tokens[50] ^= 1
  tokens.flush()
  open_texts(config)
  with pytest.raises(UserError, match='was changed: its sha256'):
    open_texts(small_config(tmp_path / 'tokens', **{'data.verify': True}))
  with shard.open('ab') as file:
    file.write(b'x')
  with pytest.raises(UserError, match='bytes, expected .* by its manifest'):
    open_texts(config)
