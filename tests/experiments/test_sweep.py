"""Sweeps of options: which runs they are, what is drawn, and one that is killed."""

import csv
import signal
import time

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.options.table import default_config
from desloc_jax.options.values import flatten
from experiments import sweep
from experiments.scales import make_scale
from tests.experiment_runs import command, run_all, SMALL


@settings(deadline=None, max_examples=20)
@given(
  st.dictionaries(
    st.sampled_from(['seed', 'periods.params', 'periods.mu', 'workers']),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True),
    min_size=1,
  ),
  st.lists(st.floats(0, 1e6), min_size=1, max_size=3, unique=True),
)
def test_a_sweep_has_every_combination_once_with_values_of_their_type(axes, rates):
  axes = {**axes, 'inner.learning_rate': rates, 'stochastic': [True, False]}
  args = [f'--sweep.{name}={",".join(map(str, values))}' for name, values in axes.items()]
  config = default_config()
  parsed = sweep.parse_axes(args, config)
  assert parsed == axes
  assert flatten(config) == flatten(default_config())
  runs = sweep.make_runs(parsed, config)
  assert len(runs) == np.prod([len(values) for values in axes.values()])
  assert len({run.key for run in runs}) == len(runs)


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--sweep.period.params=3'], "Did you mean 'periods.params'"),
    (['--sweep.seed=a,2'], '--sweep.seed=a'),
    (['--sweep.seed=1,,2'], 'empty value'),
    (['--sweep.seed=1,1'], 'a value twice'),
    (['--sweep.seed=1', '--sweep.seed=2'], 'given twice'),
    ([], 'nothing to sweep'),
  ],
)
def test_a_sweep_that_cannot_be_says_why(args, message):
  with pytest.raises(UserError, match=message):
    sweep.parse_axes(args, default_config())


def test_an_option_is_of_all_runs_or_an_axis():
  args = ['', '--scale=test', '--config.method=ddp', '--sweep.method=desloc,local_adam']
  with pytest.raises(UserError, match='--config.method and --sweep.method are given'):
    sweep.main(args)


def test_a_sweep_takes_numbers_in_parentheses_as_one_value():
  axes = sweep.parse_axes(['--sweep.worker_weights=(1,2,1,2),(1,1,1,1)'], default_config())
  assert axes == {'worker_weights': [(1, 2, 1, 2), (1, 1, 1, 1)]}


@pytest.mark.parametrize(
  'axes',
  [
    {'method': ['desloc', 'ddp']},
    {'periods.params': [1, 2, 32], 'method': ['desloc', 'local_adam'], 'seed': [0, 1]},
    {'periods.params': [1, 2], 'periods.mu': [3, 4], 'timing': ['pre', 'post']},
    {'inner.learning_rate': [0.1, 1000.0], 'workers': [2, 4]},
  ],
)
def test_sweeps_are_drawn(axes, tmp_path, trained):
  config = make_scale('test').config
  results = run_all(sweep.make_runs(axes, config), tmp_path)
  report = sweep.make_report(axes, results)
  assert len(report.rows) == len(results)
  assert len(report.table) == 1 + len(results) // len(axes.get('seed', [0]))
  report.figure.savefig(tmp_path / 'sweep.png')


@pytest.mark.slow
def test_a_run_killed_in_a_sweep_goes_on_and_one_that_diverges_is_a_row(tmp_path):
  args = [
    '--config=configs/tiny.py', f'--runs={tmp_path}/runs', f'--results={tmp_path}/results',
    *(f'--config.{option}' for option in SMALL), '--config.steps=60', '--config.log_every=1',
    '--config.checkpoint.every=2', '--config.eval.sequences=8', '--config.health.check=False',
    '--sweep.inner.learning_rate=0.004,1e30',
  ]  # fmt: skip
  process = command('sweep', *args)
  deadline = time.monotonic() + 300
  while not any((tmp_path / 'runs').glob('desloc-*/checkpoints/4')):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  process = command('sweep', *args, '--processes=2')
  output, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  rows = list(csv.DictReader((tmp_path / 'results' / 'results.csv').open()))
  assert [row['inner.learning_rate'] for row in rows] == ['0.004', '1e+30']
  assert float(rows[0]['val_loss']) < 6
  assert rows[1]['val_loss'] == 'inf' and 'at step' in rows[1]['diverged']
  workdir = tmp_path / 'runs' / rows[0]['run']
  assert 'Going on after step' in (workdir / 'output.txt').read_text()
  assert len(read_metrics(workdir)) == 61
  assert (tmp_path / 'results' / 'sweep.png').exists()
