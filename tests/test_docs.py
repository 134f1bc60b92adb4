"""Commands and names in README.md and docs/: each can be run as it stands there."""

import importlib.util
import pathlib
import re
import shlex

from absl import flags
from ml_collections import config_flags
import pytest

from desloc_jax.options.checks import check_config
from desloc_jax.options.table import OPTIONS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'experiments/README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def commands():
  """Yields (page, words) for each indented line that begins with python."""
  for page in PAGES:
    text = page.read_text().replace('\\\n', ' ')
    for line in re.findall(r'^ {4}.*?\b(python (?:-m|run\.py) .*)$', text, re.MULTILINE):
      yield page.name, shlex.split(line, comments=True)


TRAINING = [(page, words) for page, words in commands() if words[1] == 'run.py']
MODULES = sorted({words[2] for _, words in commands() if words[1] == '-m'} - {'pytest'})


@pytest.mark.parametrize(
  'page, words', TRAINING, ids=[f'{page}-{i}' for i, (page, _) in enumerate(TRAINING)]
)
def test_a_command_of_run_py_has_a_config_that_works(page, words, monkeypatch):
  monkeypatch.chdir(ROOT)
  options = [word for word in words[2:] if word.startswith('--config')]
  if '--help' in words or '--config=...' in options:
    return
  values = flags.FlagValues()
  argv = ['run.py', *options]
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  values(argv)
  check_config(values.config)


@pytest.mark.parametrize('module', MODULES)
def test_a_module_that_is_to_be_run_exists(module):
  if module.isupper() or 'NAME' in module:  # A placeholder.
    return
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
