"""What the README says can be done."""

import pathlib
import re

import numpy as np

from desloc_jax.train.config import OPTIONS
from experiments import all as all_experiments

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
EXAMPLES = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def test_the_examples_run_and_learn(capsys):
  namespace = {}
  exec(EXAMPLES[0], namespace)
  assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) <= 25
  state, params = namespace['state'], namespace['params']
  np.testing.assert_array_equal(state.params['w'], np.tile(params['w'], (8, 1)))
  assert float(namespace['loss'].mean()) < 0.2  # From 1.0 with zero weights.
  exec(EXAMPLES[1], namespace)
  assert "{'params': 64, 'mu': 64, 'nu': 64}" in capsys.readouterr().out


def test_every_option_and_file_named_exists():
  for name in re.findall(r'--config\.([a-z_.0-9]+)', README):
    assert name in OPTIONS, name
  for path in re.findall(r'`((?:desloc_jax|configs|experiments|tests)/[\w./]*)`', README):
    assert (ROOT / path).exists(), path
  for path in re.findall(r'!\[.*?\]\((.*?)\)', README):
    assert (ROOT / path).exists(), path


def test_verdicts_on_the_paper_are_those_of_the_committed_results():
  text = (ROOT / 'experiments' / 'README.md').read_text()
  reports = sorted((ROOT / 'experiments' / 'results').glob('*-cpu/results.md'))
  checks = [line for path in reports for line in path.read_text().splitlines() if line[:2] == '- ']
  assert len(reports) == len(all_experiments.NAMES) and len(checks) > 30
  assert [check for check in checks if check not in text] == []
  for path in re.findall(r'\[.*?\]\((results/.*?)\)', text):
    assert (ROOT / 'experiments' / path).exists(), path
