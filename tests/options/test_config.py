"""Configurations and the command line: every mistake is one line and exit code 2."""

import importlib
import pathlib
import re

from absl import logging
import jax
import pytest

from configs import anchor, gpt
from desloc_jax.checkpoints.segment import BEGINNING, make_clock
from desloc_jax.errors import UserError
from desloc_jax.model import parameter_count
from desloc_jax.options import table as config_lib
from desloc_jax.options.checks import check_config
from desloc_jax.options.help_text import options_page
from desloc_jax.options.values import flatten, model_config
from desloc_jax.train.setup import mesh as mesh_lib
from desloc_jax.train.setup.build_optimizer import make_optimizer
from desloc_jax.train.setup.build_periods import FEW_AVERAGES
from tests.command_line import desloc_jax, process, run_py
from tests.runs import small_config

ROOT = pathlib.Path(__file__).parents[2]
PAPER_SIZES = {
  '16m': 16_042_240,
  '125m': 123_636_480,
  '135m': 148_486_464,
  '360m': 402_310_080,
  '720m': 707_184_640,
  '1b': 1_311_213_568,
  '1_7b': 1_713_899_520,
  '13b': 12_841_210_880,
}


def load(name):
  return importlib.import_module(f'configs.{name}')


@pytest.mark.parametrize('size', gpt.SIZES)
def test_the_sizes_of_gpt_are_valid_and_as_they_say(size):
  config = gpt.get_config(size)
  check_config(config)
  parameters = parameter_count(model_config(config, vocab_size=50_257))
  assert parameters == PAPER_SIZES[size]
  tokens = config.workers * config.batch_size * config.seq_len
  assert tokens == (2**18 if size == '16m' else 2**21)
  period = config.periods.params
  counts = [config.steps // (multiple * period) for multiple in (1, 3, 6)]
  (row,) = re.findall(rf'^{size} .*', gpt.__doc__, re.MULTILINE)
  assert row.replace(',', '').split() == [
    size, str(parameters), f'{tokens * config.steps / 1e9:.1f}B', str(config.steps),
    *map(str, counts), str(period), f'{period / 1.5:.2f}x',
  ]  # fmt: skip
  assert sum(source.weight for source in config.data.sources.values()) == pytest.approx(1.0)
  with_text = gpt.get_config(f'{size}:sotu')
  assert set(with_text.data.sources) == {'text'}
  old = load(f'gpt_{size}')
  assert old.get_config() == config and old.get_config('sotu') == with_text
  with pytest.raises(UserError, match="'stou' is unknown. Did you mean 'sotu'"):
    old.get_config('stou')


@pytest.mark.parametrize('method', anchor.METHODS)
def test_the_anchor_has_the_tokens_of_its_benchmark(method):
  config = anchor.get_config(method)
  check_config(config)
  assert config.method == method
  assert config.workers * config.batch_size * config.seq_len == 8 * 64 * 1024
  assert config.eval.sequences * config.seq_len == 20 * 524_288
  assert parameter_count(model_config(config, vocab_size=50_257)) == 162_223_872
  assert anchor.get_config(f'{method}:sotu').data.sources.text.path == 'sotu'
  with pytest.raises(UserError, match=f"'{method}s' is unknown. Did you mean '{method}'"):
    anchor.get_config(f'{method}s')


def test_tiny_is_valid():
  check_config(load('tiny').get_config())


@pytest.mark.parametrize('name', ['tiny', *gpt.SIZES])
def test_periods_warm_up_and_evaluations_fit_the_length_of_the_run(name, monkeypatch):
  config = load('tiny').get_config() if name == 'tiny' else gpt.get_config(name)
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda *message: warnings.append(message))
  params = {'kernel': jax.ShapeDtypeStruct((2, 2), 'float32')}
  periods = make_optimizer(config, params, make_clock(config, BEGINNING)).periods
  counts = {name: config.steps // period for name, period in periods.items()}
  assert periods.keys() == {'params', 'mu', 'nu'} and not warnings
  assert counts['params'] >= 48 and counts['mu'] >= 16 and counts['nu'] >= FEW_AVERAGES
  assert 0 < config.schedule.warmup_steps <= config.steps / 5
  assert config.schedule.warmup_steps < config.steps * (1 - config.schedule.decay_fraction)
  assert 6 <= config.steps // config.eval.every
  assert 3 < config.steps // config.checkpoint.every
  assert config.log_every <= config.steps / 60
  if name in gpt.SIZES:
    assert config.eval.every % config.periods.params == 0  # At syncs.


@pytest.mark.parametrize(
  ('timing', 'steps', 'expected'),
  [
    (
      'post',
      768,
      [
        'params is averaged 3 times: periods.params is 256. A period of 96 makes',
        'mu is averaged once',
        'nu is averaged never',
      ],
    ),
    ('pre', 768, ['params is averaged 2 times', 'mu is averaged never', 'nu is averaged never']),
    ('post', 12_288, []),
    (
      'post',
      12_287,
      ['nu is averaged 7 times: periods.nu is 1536. A period of 1535 makes it 8 times.'],
    ),
    (
      'post',
      7,
      [
        'params is averaged never: periods.params is 256. 8 times need a longer run',
        'mu is',
        'nu is',
      ],
    ),
  ],
)
def test_what_is_averaged_a_few_times_is_named(timing, steps, expected, monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda message, *args: lines.append(message % args))
  config = config_lib.default_config()
  config.update_from_flattened_dict(
    {'timing': timing, 'steps': steps, 'periods.params': 256, 'schedule.warmup_steps': 0}
  )
  params = {'kernel': jax.ShapeDtypeStruct((2, 2), 'float32')}
  make_optimizer(config, params, make_clock(config, BEGINNING))
  assert len(lines) == len(expected)
  for line, part in zip(lines, expected, strict=True):
    assert part in line


def test_growing_periods_average_less_often(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda message, *args: lines.append(message % args))
  config = load('tiny').get_config()
  config.period_growth = 2.0  # nu, 8 times without: 800 * ln(2) / 96 = 5.8.
  params = {'kernel': jax.ShapeDtypeStruct((2, 2), 'float32')}
  make_optimizer(config, params, make_clock(config, BEGINNING))
  assert len(lines) == 1 and 'nu is averaged 5 times' in lines[0]


def test_a_guard_that_is_off_is_named(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda message, *args: lines.append(message % args))
  config = load('tiny').get_config()
  params = {'kernel': jax.ShapeDtypeStruct((2, 2), 'float32')}
  for method, guard in (('desloc', True), ('local_adam', False), ('desloc', False)):
    config.method, config.moment_guard = method, guard
    make_optimizer(config, params, make_clock(config, BEGINNING))
  assert len(lines) == 1 and 'moment_guard is off' in lines[0]
  config.method, config.stochastic = 'local_adam', True  # Coins of equal periods fall apart too.
  make_optimizer(config, params, make_clock(config, BEGINNING))
  assert len(lines) == 2 and 'mu every 16, nu every 16' in lines[1]
  assert 'mu every 48, nu every 96' in lines[0]


def test_options_are_no_aliases_of_each_other():
  """One placeholder object for several options would tie their values together."""
  for name, row in config_lib.OPTIONS.items():
    config = config_lib.default_config()
    before = flatten(config)
    other = {int: 7, float: 7.0, str: 'x', bool: row.default is not True, tuple: (1.0,)}
    changed = other[row.kind]
    config.update_from_flattened_dict({name: changed})
    after = flatten(config)
    assert [key for key in before if before[key] != after[key]] == [name]


BAD = {
  'workers': (0, 'workers is 0'),
  'batch_size': (-1, 'batch_size is -1'),
  'seed': (-1, 'seed is -1'),
  'accumulation': (3, 'does not divide the 2 sequences'),
  'seq_len': (4096, 'longer than the model takes'),
  'stop_at': (13, r'from 1 to the last \(12\)'),
  'global_batch_size': (6, '4 workers cannot share'),
  'schedule.unit': ('token', "Did you mean 'tokens'"),
  'restore.allow': ('periods,methods', "Did you mean 'method'"),
  'failures.away': ('4:1-2', 'workers from 0 to 3'),
  'failures.rate': (1.5, r'in \[0, 1\)'),
  'health.decay': (1.0, r'in \[0, 1\)'),
  'health.threshold': (0.5, 'health.threshold is 0.5; expected a number above 1 and finite, or 0'),
  'method': ('deslok', "Did you mean 'desloc'"),
  'timing': ('mid', 'Valid: post, pre'),
  'inner.name': ('adan', "Did you mean 'adam'"),
  'inner.b1': (1.0, r'in \[0, 1\)'),
  'inner.learning_rate': (float('nan'), 'inner.learning_rate is nan'),
  'schedule.name': ('wds', "Did you mean 'wsd'"),
  'schedule.decay_fraction': (1.5, r'number in \[0, 1\]'),
  'schedule.warmup_steps': (12, 'not less than steps'),
  'periods.nu': (2**31, r'below 2\*\*31'),
  'inner.eps': (-1.0, 'inner.eps is -1'),
  'worker_weights': ((1.0, 2.0), 'expected 4 numbers'),
  'periods.params': (-5, 'periods.params is -5'),
  'data.validation_fraction': (1.0, r'in \[0, 1\)'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_value_is_named(name):
  value, message = BAD[name]
  config = small_config('sotu', **{name: value})
  with pytest.raises(UserError, match=message):
    check_config(config)
    make_clock(config, BEGINNING)


def test_devices_that_workers_cannot_share_are_refused():
  eight = jax.devices()
  with pytest.raises(UserError, match='3 workers.*8 devices'):
    mesh_lib.make_mesh(3, 0, eight)
  with pytest.raises(UserError, match='mesh.fsdp can be 2 or 4 or 8'):
    mesh_lib.make_mesh(4, 1, eight)
  assert dict(mesh_lib.make_mesh(4, 0, eight).shape) == {'workers': 4, 'fsdp': 2}
  assert dict(mesh_lib.make_mesh(8, 0, eight[:2]).shape) == {'workers': 2, 'fsdp': 1}
  assert dict(mesh_lib.make_mesh(3, 0, eight[:1]).shape) == {'workers': 1, 'fsdp': 1}


COMMANDS = {
  'two config files': (
    ['--config=configs/gpt.py:1b'],
    'configs/gpt.py:1b: expected one config file',
  ),
  'unknown option': (
    ['--config.perids.params=64'],
    "Did you mean 'periods.params' or 'periods.mu' or 'periods.m2'? --help",
  ),
  'unknown group': (['--config.optimizer.b1=1'], "Did you mean 'inner.b1'? --help lists all"),
  'wrong type': (['--config.periods.params=often'], 'periods.params'),
  'impossible value': (['--config.periods.params=-1'], 'periods.params is -1'),
  'period of a state that is not there': (['--config.periods.trace=3'], 'trace'),
  'missing data': (['--config.data.sources.text.path=nowhere.txt'], 'nowhere.txt'),
  'unknown key of a source': (['--config.data.sources.text.nope=1'], 'data.sources.text.nope'),
  'unknown source': (
    ['--config.data.sources.other.path=x'],
    "--config.data.sources.other.path: this config has no 'other'",
  ),
  'weights of another number of workers': (
    ['--config.data.sources.text.worker_weights=(1.0,2.0)'],
    'worker_weights',
  ),
  'unknown flag': (['--wrkdir=x'], 'wrkdir'),
  'unknown mode': (['--mode=fly'], 'fly'),
  'stray word': (['tiny'], "'tiny' is not an option"),
}


@pytest.mark.parametrize(
  'command',
  ['run.py --config=configs/tiny.py', '-m desloc_jax eval --workdir=runs/a', '-m experiments.all'],
)
def test_a_variable_that_jax_cannot_read_is_one_line(command, monkeypatch):
  monkeypatch.setenv('JAX_ENABLE_X64', 'maybe')
  result = process(*command.split())
  assert result.returncode == 2 and result.stderr.count('\n') == 1, result.stderr
  assert "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'" in result.stderr


@pytest.mark.parametrize(
  ('package', 'load'),
  [
    ('ml_collections', "from desloc_jax.__main__ import main; main(['train'])"),
    ('jax', "from desloc_jax import starting; starting.load('jax')"),
  ],
)
def test_a_package_that_is_not_installed_is_one_line(package, load):
  result = process('-c', f"import sys; sys.modules['{package}'] = None; {load}")
  assert result.returncode == 2 and result.stderr.count('\n') == 1, result.stderr
  assert f'error: the package {package} is not installed: pip install' in result.stderr


@pytest.mark.parametrize('case', COMMANDS)
def test_the_command_line_answers_a_mistake_in_one_line(case, tmp_path):
  args, message = COMMANDS[case]
  result = run_py('--config=configs/tiny.py', f'--workdir={tmp_path}/run', *args)
  assert result.returncode == 2, result.stderr
  assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1, result.stderr
  assert message in result.stderr
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('isolated', [[], ['-I']])
def test_a_process_answers_as_they_do(isolated):
  args = '--config=configs/tiny.py', '--config.perids.params=64'
  result = process(*isolated, 'run.py', *args)
  assert (result.returncode, result.stderr) == run_py(*args)[::2]


@pytest.mark.parametrize('path', ['configs/missing.py', ''])
def test_a_missing_config_file_is_one_line(path):
  result = run_py(*([f'--config={path}'] if path else []))
  assert result.returncode == 2 and result.stderr.count('\n') == 1, result.stderr
  assert (path or '--config is missing') in result.stderr


def test_a_config_may_have_an_argument():
  result = run_py('--config=configs/gpt_16m.py:sotu', '--config.method=deslok')
  assert result.returncode == 2 and "Did you mean 'desloc'" in result.stderr
  result = run_py('--config=configs/gpt.py:1bb')
  assert result.returncode == 2 and result.stderr.count('\n') == 1
  assert "'1bb' is unknown. Did you mean '1b'?" in result.stderr


def test_help_lists_every_option():
  result = process('run.py', '--help')
  assert result.returncode == 0
  for name in config_lib.OPTIONS:
    assert f'--config.{name}=' in result.stdout
  assert '--workdir' in result.stdout


def test_docs_list_every_option():
  page = (ROOT / 'docs' / 'options.md').read_text()
  assert page == options_page(), 'python -m desloc_jax options > docs/options.md'


def test_a_prepared_folder_of_another_tokenizer_is_refused(text, tmp_path):
  shards = str(tmp_path / 'shards')
  options = (f'--input={text}', '--tokenizer=gpt2', '--validation_fraction=0.2', '--processes=1')
  assert desloc_jax('prepare', f'--output={shards}', *options).returncode == 0
  result = run_py(
    '--config=configs/tiny.py',
    f'--workdir={tmp_path}/run',
    f'--config.data.sources.text.path={shards}',
  )
  assert result.returncode == 2 and 'gpt2' in result.stderr and 'bytes' in result.stderr
