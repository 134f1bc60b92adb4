"""Options, config files and command lines drawn at random: taken, or refused in one line."""

import contextlib
import pathlib
import subprocess
import sys
from unittest import mock

from absl import flags
from hypothesis import given, strategies as st
import jax
from ml_collections import config_dict, config_flags
import pytest

from desloc_jax.logs.workdir import check_workdir
from desloc_jax.options.checks import check_config
from desloc_jax.options.table import OPTIONS
from desloc_jax.options.values import option
from desloc_jax.train import cli, job as job_lib, program
from tests.fuzzing import contents, ending, fuzz
from tests.runs import small_config
from tests.shared_programs import key_of

pytestmark = pytest.mark.usefixtures('elsewhere')

ROOT = pathlib.Path(__file__).parents[2]
TINY = f'--config={ROOT}/configs/tiny.py'
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
  return OPTIONS[name].kind


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


@pytest.fixture(scope='module')
def reached():
  """What programs depend on that came to their step."""
  return set()


@pytest.fixture
def until_the_step(reached, monkeypatch):
  """Ends every job before its training step is traced, and earlier where one like it has been."""
  monkeypatch.setattr(program, 'make_train_step', mock.Mock(side_effect=Reached))
  make_program = job_lib.make_program

  def make_once(*args):
    if (key := key_of(*args)) not in reached:
      with contextlib.suppress(Reached):
        make_program(*args)
      reached.add(key)
    raise Reached

  monkeypatch.setattr(job_lib, 'make_program', make_once)


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
      job_lib.make_job(config, jax.devices()[:1]).program.lowered  # noqa: B018

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
def test_the_largest_values_can_be_traced(case, text):
  assert try_options(text, AT_THE_LIMIT[case]) == ''


@given(st.data())
@fuzz(8)
def test_values_that_are_taken_can_be_traced(text, data):
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


def test_a_limit_on_threads_is_told_in_one_line():
  text = ending(mock.Mock(side_effect=RuntimeError("can't start new thread")))
  assert 'may have no more memory or threads' in text
