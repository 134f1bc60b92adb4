"""The commands of docs/first_model.md, as they stand there, on a run of seconds.

`python run.py` of the page is checked by test_docs.py, lm_eval by tests/inference/test_lm_eval.py.
"""

import importlib.util
import os
import pathlib
import re
import shlex

import pytest

from desloc_jax import __main__ as commands
from desloc_jax.data import train_tokenizer
from desloc_jax.hub.run_models import steps_of
from tests.runs import small_config, train_on_two

PAGE = (pathlib.Path(__file__).parents[1] / 'docs/first_model.md').read_text()
LINES = re.findall(r'^ {4}python -m desloc_jax (.*)$', PAGE, re.MULTILINE)
pytest.importorskip('safetensors')


@pytest.fixture(scope='module')
def folder(text, tmp_path_factory):
  folder = tmp_path_factory.mktemp('first')
  config = small_config(text, stop_at=3)
  config.checkpoint.update({'every': 1, 'keep': 1, 'keep_every': 2})
  config.model.layers = 1
  texts = (path.read_text() for path in sorted(text.iterdir()))
  own = train_tokenizer.train_tokenizer(texts, 300, progress=False)
  (folder / 'own.json').write_text(own.to_str())
  config.data.tokenizer = str(folder / 'own.json')
  train_on_two(config, folder / 'runs' / 'tiny')
  (folder / 'own.json').unlink()  # The run has kept it.
  return folder


def test_checkpoints_of_some_steps_are_kept_for_good(folder):
  assert steps_of(folder / 'runs' / 'tiny') == [3, 2]


@pytest.mark.parametrize('line', LINES)
def test_a_command_of_the_page_runs(line, folder, monkeypatch, capsys):
  if '--check' in line and not importlib.util.find_spec('transformers'):
    pytest.skip('requirements-export.txt is not installed')
  monkeypatch.chdir(folder)
  commands.main(shlex.split(line))
  assert capsys.readouterr().out.strip()
  for made in re.findall(r'--output=(\S+)', line):
    assert os.path.exists(made)
