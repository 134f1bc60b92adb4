"""Tests run on 8 virtual CPU devices, and compile what several of them run only once."""

import collections
import os
import pathlib
import shutil
import signal
import sys
import tempfile

from absl import logging
import pytest

from tests.environment import environment

os.environ |= environment(devices=8)
# A script's `&` has what it starts ignore Ctrl-C, and so would what tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
# Processes of one test run, those that tests start too, share what they compile.
_RUN = os.environ.get('PYTEST_XDIST_TESTRUNUID', str(os.getpid()))
_CACHE = pathlib.Path(tempfile.gettempdir()) / f'desloc_jax-tests-{_RUN}'
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(_CACHE)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'


@pytest.fixture(scope='session', autouse=True)
def shared_programs():
  """Has every job take what one before compiled of the same program."""
  from tests.shared_programs import SharedPrograms  # It imports JAX: see the settings above.

  with pytest.MonkeyPatch.context() as patch:
    yield SharedPrograms(patch)


@pytest.fixture
def compiles(shared_programs, monkeypatch):
  """Has a test compile its programs itself."""
  shared_programs.stand_aside(monkeypatch)


@pytest.fixture(autouse=True)
def no_flags_left():
  """Has each test's commands define their flags, whatever ran in its process before."""
  yield
  if 'desloc_jax.train.main' in sys.modules:
    from tests.command_line import forget_flags

    forget_flags()


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
  """Has a test's own runs leave an empty figure: half of their time. Those of fixtures are drawn."""
  leave = lambda workdir, title='': (workdir / 'training.png').write_bytes(b'')
  monkeypatch.setattr('desloc_jax.train.summary.plot_or_tell', leave)


@pytest.fixture(scope='session')
def text(tmp_path_factory):
  """A folder of small text files that tests only read."""
  from tests.runs import write_text  # It imports JAX, which reads the settings above.

  return write_text(tmp_path_factory.mktemp('data') / 'text')


@pytest.fixture(scope='session')
def seven_steps(text, tmp_path_factory):
  """The workdir of a run of 4 workers stopped after step 7, one after the parameter sync of 6."""
  from tests.runs import small_config, train_on_two

  workdir = tmp_path_factory.mktemp('runs') / 'seven'
  train_on_two(small_config(text, stop_at=7), workdir)
  return workdir


@pytest.fixture
def after_seven_steps(seven_steps, tmp_path):
  """A copy of that workdir, to go on with or to damage."""
  return shutil.copytree(seven_steps, tmp_path / 'run')


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """Runs a test in an empty folder, without a network and without log lines."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, 'datasets', None)
  monkeypatch.setattr(logging, 'warning', lambda *args: None)
  return tmp_path


@pytest.fixture
def trained(monkeypatch):
  """Puts a stub in the trainer's place in experiments; gives the configs that it is called with."""
  from experiments import runner
  from tests import stub

  configs = []
  stand_in = lambda config, workdir: configs.append(config) or stub.train(config, workdir)
  monkeypatch.setattr(runner, 'train', stand_in)
  return configs


def pytest_collection_modifyitems(items):
  # Files with many slow tests first, or at the end one process works through some of them alone.
  slow = collections.Counter(item.path for item in items if item.get_closest_marker('slow'))
  items.sort(key=lambda item: -slow[item.path])


def pytest_sessionfinish(session):
  if not hasattr(session.config, 'workerinput'):  # The process that started the others.
    for folder in {_CACHE, _CACHE.with_name(f'desloc_jax-tests-{_run_of(session)}')}:
      shutil.rmtree(folder, ignore_errors=True)


def _run_of(session):
  manager = session.config.pluginmanager.getplugin('dsession')
  return getattr(manager, 'nodemanager', None) and manager.nodemanager.testrunuid
