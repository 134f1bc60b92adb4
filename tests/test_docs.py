"""Commands and names in README.md and docs/: each is run as it stands there, as far as is said.

What is cut: a training run ends where its step would be traced, and an experiment where it would
train its first run, each with all of its options checked and its data read. Other tests train:
`test_workdir.py` by run.py, `test_experiments.py` a cut of every experiment and of the benchmark.
What measures networks, faults and alarms ends when its options are parsed; see the tests of its
name. A placeholder, as in `HOST:PORT`, is not run.
"""

import argparse
import importlib
import importlib.util
import pathlib
import re
import shlex
import sys
from unittest import mock

from absl import flags
import jax
from ml_collections import config_flags
import pytest

from desloc_jax import __main__ as desloc_commands, plan
from desloc_jax.options.checks import check_config
from desloc_jax.options.table import OPTIONS
from desloc_jax.options.topology import parse_topology
from desloc_jax.train import job, program
from experiments import command, sweep

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'experiments/README.md', *sorted((ROOT / 'docs').glob('*.md'))]
PLACEHOLDERS = re.compile(r'\.\.\.|HOST:PORT|NAME\b|\bX=VALUE')


def commands():
  """Yields (page, words after python) for each indented line that begins with python."""
  for page in PAGES:
    text = page.read_text().replace('\\\n', ' ')
    for line in re.findall(r'^ {4}.*?\bpython ((?:-m|run\.py) .*)$', text, re.MULTILINE):
      if not PLACEHOLDERS.search(line.split('#')[0]):
        words = shlex.split(line, comments=True)
        # The same command where the package is installed.
        installed = words[:3] == ['-m', 'desloc_jax', 'train']
        yield page.name, ['run.py', *words[3:]] if installed else words


def told(kind):
  """Returns the commands of a kind, each once, with the pages as names of the tests."""
  found = {tuple(words): page for page, words in commands() if kind(words)}
  return [pytest.param(list(words), id=f'{found[words]}: {" ".join(words)}') for words in found]


def module_of(words):
  return words[1] if words[0] == '-m' else ''


class Reached(BaseException):  # Which no command turns into a line.
  """All that was to be run has been."""


@pytest.fixture(autouse=True)
def here(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture
def no_step(monkeypatch):
  monkeypatch.setattr(program, 'make_train_step', mock.Mock(side_effect=Reached))


def parsed(words):
  """Returns the flags of run.py with these arguments."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=words)
  flags.DEFINE_string('workdir', None, '', flag_values=values)
  flags.DEFINE_enum('mode', 'train', ['train', 'plan', 'compile'], '', flag_values=values)
  assert values(words) == words[:1], words  # Nothing is left over.
  return values


def test_there_are_commands_of_each_kind():
  found = [words for _, words in commands()]
  modules = {module_of(words) for words in found}
  assert len(found) > 30
  assert {'', 'pytest', 'desloc_jax', 'experiments.sweep', 'experiments.paper.muon'} <= modules


@pytest.mark.parametrize(
  'words',
  told(lambda w: w[0] == 'run.py' and '--help' not in w and 'sources.text.path' not in ' '.join(w)),
)
def test_a_command_of_run_py_gets_to_its_step(words, no_step):
  values = parsed(words)
  if values.mode == 'plan':
    assert 'desloc' in plan.plan_text(plan.make_plan(values.config))
  elif values.mode == 'compile':
    parse_topology(values.config.topology)  # libtpu need not be here.
  else:
    with pytest.raises(Reached):
      job.make_job(values.config, jax.devices()[:1])


def test_the_commands_for_own_data_go_together(no_step, tmp_path, monkeypatch):
  """With a vocabulary of 300 in the place of 8192, for a text of some KB."""
  lines = [words for page, words in commands() if page == 'data.md']
  kinds = [' '.join(words[:3]) for words in lines]
  assert kinds[:2] == ['-m desloc_jax tokenizer', '-m desloc_jax prepare'], kinds
  lines[0] = [word.replace('8192', '300') for word in lines[0]]
  config = parsed([word.replace('configs/', f'{ROOT}/configs/') for word in lines[2]]).config
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'texts').mkdir()
  for i in range(200):
    (tmp_path / 'texts' / f'{i}.txt').write_text(f'the state of the union in {1900 + i} ' * 20)
  for words in lines[:2]:
    desloc_commands.main(words[2:])
  config.model.seq_len = config.seq_len = 32  # So that there is a sequence for each worker.
  with pytest.raises(Reached):
    job.make_job(config, jax.devices()[:1])


@pytest.mark.parametrize(
  'words',
  told(lambda w: re.match(r'experiments\.((paper|extensions)\..*|all|sweep)$', module_of(w))),
)
def test_a_command_of_an_experiment_gets_to_its_runs(words, monkeypatch):
  """In one process: `--processes` starts more of the same."""
  words = command.without_option(words, '--processes')
  monkeypatch.setattr(sys, 'argv', words[1:])
  for module in (command, sweep):
    monkeypatch.setattr(module, 'run_all', mock.Mock(side_effect=Reached))
  module = importlib.import_module(words[1])
  with pytest.raises(Reached):
    if words[1].startswith(('experiments.paper.', 'experiments.extensions.')):
      command.run_experiments([{words[1]: module}], words[1], module.__doc__)
    else:
      module.main(*([sys.argv] if module is sweep else []))


@pytest.mark.parametrize('words', told(lambda w: module_of(w).startswith('experiments.systems.')))
def test_a_command_of_a_measurement_is_parsed(words, monkeypatch):
  name = module_of(words)
  if name.endswith('benchmark'):  # Its flags are global: it is run by test_experiments.py.
    words = [word for word in words[1:] if not word.startswith(('--rounds=', '--guard'))]
    check_config(parsed(words).config)
    return
  if importlib.util.find_spec(name).submodule_search_locations:
    name += '.__main__'
  module = importlib.import_module(name)
  if hasattr(module, 'parse'):
    module.parse(words[2:])
    return
  parse = argparse.ArgumentParser.parse_args
  then_end = lambda *args: mock.Mock(side_effect=Reached)(parse(*args))
  monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', then_end)
  with pytest.raises(Reached):
    module.main(words[2:])


OURS = {module_of(words) for _, words in commands()} - {'', 'lm_eval'}  # Which its page installs.


@pytest.mark.parametrize('module', sorted(OURS))
def test_a_module_that_is_to_be_run_exists(module):
  spec = importlib.util.find_spec(module)
  assert spec is not None, module
  if spec.submodule_search_locations:
    assert importlib.util.find_spec(f'{module}.__main__')


@pytest.mark.parametrize('page', PAGES, ids=[page.name for page in PAGES])
def test_every_option_file_and_picture_named_exists(page):
  text = page.read_text()
  for name in re.findall(r'--config\.([a-z_.0-9]+)', text):
    assert name in OPTIONS, name
  for path in re.findall(r'`((?:desloc_jax|configs|experiments|tests|launch|docs)/[\w./]*)`', text):
    assert (ROOT / path).exists(), path
  for path in re.findall(r'\]\(([\w./-]+\.(?:md|png|csv))\)', text):
    assert (page.parent / path).exists(), path
