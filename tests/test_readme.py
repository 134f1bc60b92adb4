"""The examples that README.md and docs/ show, and the verdicts of experiments/README.md."""

import pathlib
import re

import jax
import numpy as np

from experiments import all as all_experiments

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'docs' / 'own_loop.md']
EXAMPLES = re.findall(r'```python\n(.*?)```', ''.join(p.read_text() for p in PAGES), re.DOTALL)


def test_the_examples_run_and_learn(capsys):
  namespace = {}
  assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) <= 12
  for example in EXAMPLES:  # From top to bottom of the pages.
    exec(example, namespace)
    if ' = step(' in example:
      check_that_it_learned(**{name: namespace[name] for name in ('params', 'state', 'loss')})
  assert "{'params': 64, 'mu': 64, 'nu': 64}" in capsys.readouterr().out


def check_that_it_learned(params, state, loss):
  """After 96 steps everything has been averaged."""
  whole = jax.tree.map(lambda x: np.tile(x, (8, *([1] * x.ndim))), params)
  jax.tree.map(np.testing.assert_array_equal, state.params, whole)
  assert float(loss.mean()) < 0.2  # From 1.0 with zero weights.


def test_verdicts_on_the_paper_are_those_of_the_committed_results():
  text = (ROOT / 'experiments' / 'README.md').read_text()
  reports = sorted((ROOT / 'experiments' / 'results').glob('*-cpu/results.md'))
  checks = [line for path in reports for line in path.read_text().splitlines() if line[:2] == '- ']
  assert len(reports) == len((*all_experiments.NAMES, *all_experiments.TUNED)) and len(checks) > 30
  assert [check for check in checks if check not in text] == []
  for path in re.findall(r'\[.*?\]\((results/.*?)\)', text):
    assert (ROOT / 'experiments' / path).exists(), path
