"""Compiled programs are kept for later starts, and never stand in the way of one."""

import os
import pathlib
import subprocess
import sys
import warnings

from absl import logging
import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
import pytest

from desloc_jax.train.speed import compilation
from tests.environment import environment
from tests.runs import losses, small_config, train_on_two

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """Has no folder of the tests' own in the way; gives one to use, and the warnings."""
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
  said = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: said.append(text % args))
  monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)
  compilation._tell_once.cache_clear()
  jax.config.update('jax_compilation_cache_dir', None)
  compilation_cache.reset_cache()
  with warnings.catch_warnings():
    yield tmp_path / 'cache', said
  compilation._tell_once.cache_clear()
  jax.config.update('jax_compilation_cache_dir', before)
  compilation_cache.reset_cache()


def entries(folder):
  return sorted(folder.rglob('*-cache'))


def compute():
  jax.clear_caches()
  return np.asarray(jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((8, 8))))


def test_programs_are_kept_where_the_option_says(cache, tmp_path):
  folder, said = cache
  compilation.keep_programs(str(folder))
  compute()
  assert entries(folder) and not said
  kept = jax.config.jax_compilation_cache_dir
  compilation.keep_programs(str(tmp_path / 'other'))  # A folder that was chosen before stays.
  assert jax.config.jax_compilation_cache_dir == kept


def test_the_default_is_a_folder_of_the_user_and_it_can_be_off(cache, tmp_path):
  compilation.keep_programs('')
  assert jax.config.jax_compilation_cache_dir is None
  compilation.keep_programs('user')
  assert jax.config.jax_compilation_cache_dir.startswith(f'{tmp_path}/home/desloc_jax/cpu-')


def test_a_user_without_a_home_gets_no_folder_of_that_name(cache, tmp_path, monkeypatch):
  _, said = cache
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', 'caches')  # Relative ones are not meant, by its standard.
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  compilation.keep_programs('user')
  assert jax.config.jax_compilation_cache_dir is None and list(tmp_path.iterdir()) == []
  assert len(said) == 1 and 'this user has no home' in said[0]


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'empty'])
def test_a_damaged_entry_is_told_once_and_compiled_anew(cache, damage):
  folder, said = cache
  compilation.keep_programs(str(folder))
  expected = compute()
  for path in entries(folder):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    whole = {'cut': content[: len(content) // 2], 'flipped': content, 'empty': b''}
    path.write_bytes(whole[damage])
  assert compute().tobytes() == expected.tobytes()
  assert len(said) == 1 and 'Error reading' in said[0] and 'compiled anew' in said[0]
  assert compute().tobytes() == expected.tobytes() and len(said) == 1
  assert entries(folder)  # They were written again.


def test_a_folder_that_cannot_be_written_is_told(cache, tmp_path):
  (tmp_path / 'file').write_text('')
  compilation.keep_programs(str(tmp_path / 'file'))
  assert len(cache[1]) == 1 and 'compiled programs are not kept' in cache[1][0]
  assert jax.config.jax_compilation_cache_dir is None
  compute()


def test_the_oldest_programs_go_where_there_are_too_many(tmp_path, monkeypatch):
  monkeypatch.setattr(compilation, '_MOST_BYTES', 25)
  for i in range(4):
    path = tmp_path / f'{i}-cache'
    path.write_bytes(b'x' * 10)
    os.utime(path, (i, i))
  (tmp_path / 'notes').write_text('x' * 100)
  compilation._prune(tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['2-cache', '3-cache', 'notes']


def test_a_program_that_was_kept_computes_the_same_bits(cache, compiles, text, tmp_path):
  """Also where its state was donated."""
  config = small_config(text, **{'compilation.cache': str(cache[0]), 'health.check': False})
  jax.clear_caches()
  train_on_two(config, tmp_path / 'first')
  before = entries(cache[0])
  jax.clear_caches()
  train_on_two(config, tmp_path / 'second')
  assert losses(tmp_path / 'first') == losses(tmp_path / 'second')
  assert entries(cache[0]) == before and before  # Nothing was compiled again.


# Runs commands one after another, each as if it were alone: flags of absl are defined once only.
COMMANDS = """
import runpy, sys
from absl import flags
def documented():
  'A docstring.'
print('docstrings:', documented.__doc__)
for command in (
  'run.py --help',
  'run.py --config=configs/tiny.py --mode=plan',
  'desloc_jax',
  'desloc_jax prepare --help',
  'desloc_jax plot --help',
  'experiments.paper.periods --help',
):
  sys.argv = command.split()
  try:
    if sys.argv[0].endswith('.py'):
      runpy.run_path(sys.argv[0], run_name='__main__')
    else:
      runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
  except SystemExit as end:
    assert not end.code, (command, end.code)
  for name in ('config', 'workdir', 'coordinator', 'num_processes', 'process_id', 'mode'):
    if name in flags.FLAGS:
      delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()
  print('ended:', command)
"""


@pytest.mark.slow
def test_commands_work_without_docstrings():
  result = subprocess.run(
    [sys.executable, '-c', COMMANDS], capture_output=True, text=True, cwd=ROOT,
    env=environment(PYTHONOPTIMIZE='2'),
  )  # fmt: skip
  assert result.returncode == 0 and 'Traceback' not in result.stderr, result.stderr
  without, *rest = result.stdout.splitlines()
  assert without == 'docstrings: None'
  assert 'None' not in ' '.join(rest).split()
  assert len([line for line in rest if line.startswith('ended: ')]) == 6, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize('platform', ['cuda', 'rocm', 'tpu', 'nonsense'])
def test_a_platform_that_is_not_there_is_named(platform, tmp_path):
  result = subprocess.run(
    [sys.executable, 'run.py', '--config=configs/tiny.py', f'--workdir={tmp_path}/run'],
    capture_output=True, text=True, env=environment() | {'JAX_PLATFORMS': platform},
  )  # fmt: skip
  if result.returncode == 0:
    pytest.skip('it is there')
  lines = result.stderr.strip().splitlines()
  assert result.returncode == 2 and lines[-1].startswith(f'error: JAX_PLATFORMS={platform}: ')
  assert 'Here are: cpu' in lines[-1] and 'Traceback' not in result.stderr
  assert not (tmp_path / 'run').exists()
