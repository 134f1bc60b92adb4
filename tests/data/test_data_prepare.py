"""Preparing shards: options, parallelism, and going on after being killed."""

import errno
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from desloc_jax.data import (
  is_held_out,
  load_tokenizer,
  parallel,
  prepare,
  read_documents,
  read_manifest,
)
from desloc_jax.errors import UserError


@pytest.fixture
def corpus(tmp_path):
  path = tmp_path / 'corpus.jsonl'
  rng = np.random.default_rng(0)
  with open(path, 'w') as file:
    for i in range(300):
      text = f'document {i} ' + 'word ' * int(rng.integers(1, 60))
      file.write(json.dumps({'text': text, 'year': i}) + '\n')
  return str(path)


def contents(folder):
  return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def test_shards_hold_the_documents_in_order(corpus, tmp_path):
  manifest = prepare.prepare(corpus, str(tmp_path / 'out'), 'bytes', 0.2, 5000)
  tokenizer = load_tokenizer('bytes')
  assert manifest == read_manifest(str(tmp_path / 'out'))
  assert len(manifest.of_split('train')) > 3
  for split in ('train', 'validation'):
    texts = [
      document.text
      for document in read_documents(corpus)
      if is_held_out(document.text, 0.2) == (split == 'validation')
    ]
    stream = np.concatenate(
      [np.load(tmp_path / 'out' / shard.file) for shard in manifest.of_split(split)]
    )
    assert stream.dtype == np.uint16
    assert tokenizer.decode(stream) == ''.join(text + '<|endoftext|>' for text in texts)
    assert manifest.totals()[split] == {
      'shards': len(manifest.of_split(split)),
      'documents': len(texts),
      'tokens': len(stream),
      'text_bytes': sum(len(text.encode()) for text in texts),
    }


def test_result_does_not_depend_on_processes(corpus, tmp_path, monkeypatch):
  monkeypatch.setattr('desloc_jax.data.encoding._BATCH_CHARACTERS', 1000)
  for processes in (1, 2):
    prepare.prepare(corpus, str(tmp_path / str(processes)), 'bytes', 0.2, 5000, processes)
  assert contents(tmp_path / '1') == contents(tmp_path / '2')


def test_a_process_that_the_system_kills_is_told(monkeypatch):
  monkeypatch.setattr('desloc_jax.data.encoding._BATCH_CHARACTERS', 100)

  def texts():
    yield from ['word ' * 30] * 8
    for process in multiprocessing.active_children():
      process.kill()
    yield from ['word ' * 30] * 99

  with pytest.raises(UserError, match='was killed, by the system perhaps .* below 2'):
    list(parallel.encode_in_processes(texts(), 'bytes', None, 0.1, 2))


def test_a_system_without_shared_memory_is_told(monkeypatch):
  def refuse(*args, **options):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  monkeypatch.setattr(parallel.futures, 'ProcessPoolExecutor', refuse)
  with pytest.raises(UserError, match='memory here .Read-only file system.; --processes=1 needs'):
    list(parallel.encode_in_processes(['text'], 'bytes', None, 0.1, 2))


def test_goes_on_after_kill(tmp_path):
  options = [
    '--input=sotu',
    '--tokenizer=bytes',
    '--validation_fraction=0.1',
    '--shard_tokens=60000',
    '--processes=2',
  ]
  prepare.main([*options, f'--output={tmp_path}/whole', '--processes=1'])
  out = tmp_path / 'killed'
  command = [sys.executable, '-m', 'desloc_jax.data.prepare', *options, f'--output={out}']
  process = subprocess.Popen(
    command,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  while not (out / 'train_00003.npy').exists() and process.poll() is None:
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL, 'it ended before it could be killed'
  assert not (out / 'manifest.json').exists()
  kept = len(read_manifest(str(out), 'manifest.incomplete.json').shards)
  assert kept
  written = {name: (out / name).stat().st_mtime_ns for name in os.listdir(out)}
  # What a torn write leaves behind must not matter either.
  (out / '.train_00007.npy.0.partial').write_bytes(b'torn')
  prepare.main([*options, f'--output={out}', '--processes=1'])
  assert contents(out) == contents(tmp_path / 'whole')
  assert (out / 'train_00000.npy').stat().st_mtime_ns == written['train_00000.npy']
  assert_group_ends(process.pid)


def assert_group_ends(group):
  """The killed command's own processes must not outlive it."""
  deadline = time.monotonic() + 20
  while time.monotonic() < deadline:
    try:
      os.killpg(group, 0)
    except ProcessLookupError:
      return
    time.sleep(0.05)
  os.killpg(group, signal.SIGKILL)
  pytest.fail('processes outlived the killed command')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_all_of_it_end_by_a_signal_to_all(number, tmp_path):
  """As from a terminal or a scheduler; a process that went as it writes would be waited for."""
  options = ['--input=sotu', '--tokenizer=bytes', '--shard_tokens=60000', '--processes=2']
  command = [sys.executable, '-m', 'desloc_jax', 'prepare', *options, f'--output={tmp_path}/out']
  cwd = pathlib.Path(__file__).parents[2]
  process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, cwd=cwd)
  while not (tmp_path / 'out' / 'train_00001.npy').exists() and process.poll() is None:
    time.sleep(0.001)
  os.killpg(process.pid, number)
  told = process.communicate(timeout=30)[1]
  assert told.count(b'\n') == 1 and process.returncode == 128 + number, told
  assert_group_ends(process.pid)
  # A file that the signal met as it was made, before it could be removed, is by the next attempt.
  subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=60)
  assert not [name for name in os.listdir(tmp_path / 'out') if name.startswith('.')]


def test_complete_folder_is_left_alone(corpus, tmp_path):
  arguments = (corpus, str(tmp_path / 'out'), 'bytes', 0.2, 5000)
  first = prepare.prepare(*arguments)
  before = contents(tmp_path / 'out')
  assert prepare.prepare(*arguments) == first
  assert contents(tmp_path / 'out') == before


@pytest.mark.parametrize(
  'change, message',
  [
    ({'tokenizer': 'gpt2'}, "tokenizer name 'bytes', now 'gpt2'"),
    ({'validation_fraction': 0.3}, 'validation_fraction 0.2, now 0.3'),
    ({'where': 'year:0-10'}, "where '', now 'year:0-10'"),
  ],
)
def test_other_options_are_refused(corpus, tmp_path, change, message):
  options = dict(
    input=corpus, output=str(tmp_path / 'out'), tokenizer='bytes', validation_fraction=0.2
  )
  prepare.prepare(**options)
  with pytest.raises(UserError, match=message):
    prepare.prepare(**options | change)


def test_changed_input_is_refused(corpus, tmp_path):
  prepare.prepare(corpus, str(tmp_path / 'out'), 'bytes')
  with open(corpus, 'a') as file:
    file.write('{"text": "more"}\n')
  with pytest.raises(UserError, match='input_bytes'):
    prepare.prepare(corpus, str(tmp_path / 'out'), 'bytes')


@pytest.mark.parametrize(
  'option, message',
  [
    ('--validation_fraction=1', 'validation_fraction is 1.0'),
    ('--processes=0', 'processes is 0'),
    ('--where=year:5000-6000', 'has no document'),
    ('--tokenizer=byte', "Did you mean 'bytes'"),
    ('--input=nowhere', "'nowhere'"),
  ],
)
def test_errors_are_one_line(corpus, tmp_path, capsys, option, message):
  with pytest.raises(SystemExit) as stop:
    prepare.main(
      [
        f'--input={corpus}',
        f'--output={tmp_path}/out',
        '--tokenizer=bytes',
        '--processes=1',
        option,
      ]
    )
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1


def test_table(corpus, tmp_path, capsys):
  prepare.main(
    [
      f'--input={corpus}',
      f'--output={tmp_path}/out',
      '--tokenizer=bytes',
      '--processes=1',
      '--validation_fraction=0',
    ]
  )
  header, _, train, validation = capsys.readouterr().out.splitlines()
  assert header.split() == ['split', 'documents', 'tokens', 'bytes', 'bytes/token']
  assert train.split()[:2] == ['train', '300']
  assert validation.split() == ['validation', '0', '0', '0', '0.00']
