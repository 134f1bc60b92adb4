"""The examples that README.md and docs/ show, and the verdicts of experiments/README.md."""

import pathlib
import re

import numpy as np

from experiments import all as all_experiments

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'docs' / 'own_loop.md']
EXAMPLES = re.findall(r'```python\n(.*?)```', ''.join(p.read_text() for p in PAGES), re.DOTALL)


def test_the_examples_run_and_learn(capsys):
  namespace = {}
  exec(EXAMPLES[0], namespace)
  assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) <= 25
  state, params = namespace['state'], namespace['params']
  np.testing.assert_array_equal(state.params['w'], np.tile(params['w'], (8, 1)))
  assert float(namespace['loss'].mean()) < 0.2  # From 1.0 with zero weights.
  exec(EXAMPLES[1], namespace)
  assert "{'params': 64, 'mu': 64, 'nu': 64}" in capsys.readouterr().out


def test_verdicts_on_the_paper_are_those_of_the_committed_results():
  text = (ROOT / 'experiments' / 'README.md').read_text()
  reports = sorted((ROOT / 'experiments' / 'results').glob('*-cpu/results.md'))
  checks = [line for path in reports for line in path.read_text().splitlines() if line[:2] == '- ']
  assert len(reports) == len(all_experiments.NAMES) and len(checks) > 30
  assert [check for check in checks if check not in text] == []
  for path in re.findall(r'\[.*?\]\((results/.*?)\)', text):
    assert (ROOT / 'experiments' / path).exists(), path
