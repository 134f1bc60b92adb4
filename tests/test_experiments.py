"""The experiments' own code: mostly with a stub in the trainer's place, else on runs of seconds."""

import csv
import importlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from desloc_jax.data.documents import read_documents
from desloc_jax.errors import UserError
from desloc_jax.train.config import default_config, flatten
from desloc_jax.train.config_checks import check_config
from desloc_jax.train.metrics import read_metrics
from experiments import (
  all as all_experiments,
  beyond,
  communication,
  half_lives,
  heterogeneous,
  plots,
  runner,
  sweep,
  toy,
)  # fmt: skip
from experiments.command import without_option
from experiments.progress import Progress
from experiments.report import Check, confidence_interval, markdown, mean_spread, rows_of, write
from experiments.runs import Result, Run, with_those_before
from experiments.scales import changed, make_scale
from experiments.share import shared
from tests import stub

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ('model.layers=1', 'model.width=32', 'model.heads=2', 'seq_len=32', 'batch_size=2')


@pytest.fixture
def trained(monkeypatch):
  """Puts the stub in the trainer's place; gives the configs that it is called with."""
  configs = []
  stand_in = lambda config, workdir: configs.append(config) or stub.train(config, workdir)
  monkeypatch.setattr(runner, 'train', stand_in)
  return configs


def run_all(runs, folder):
  return runner.run_all(runs, folder, Progress({run.key: run.arithmetic for run in runs}))


def command(module, *args, **options):
  environment = {**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(
    [sys.executable, '-m', f'experiments.{module}', *args],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, **options,
  )  # fmt: skip


def some_runs(**options):
  scale = make_scale('test')
  return scale.runs({'desloc': options, 'ddp': {'method': 'ddp', **options}})


def test_a_finished_run_is_not_repeated_and_only_what_is_computed_counts(tmp_path, trained, capsys):
  runs = some_runs()
  first = run_all(runs, tmp_path)
  assert len(trained) == 4
  assert [result.run for result in first] == runs
  assert '[4 of 4, 0:00:00 left] ddp, seed 1' in capsys.readouterr().out
  again = run_all(some_runs(**{'checkpoint.every': 3, 'checkpoint.keep': 7}), tmp_path)
  assert len(trained) == 4
  assert [result.summary for result in again] == [result.summary for result in first]
  run_all(some_runs(**{'periods.params': 3}), tmp_path)
  assert len(trained) == 8
  run_all(some_runs(**{'eval.sequences': 9}), tmp_path)  # Another validation loss.
  assert len(trained) == 12


def test_methods_differ_in_nothing_but_their_own_options(trained):
  scale = make_scale('test')
  base = flatten(scale.config)
  for run in communication.runs(scale):
    options = flatten(run.config)
    differing = {name for name in options if options[name] != base[name]}
    assert differing <= {'method', 'seed', *communication.VARIANTS[run.labels['variant']]}


def test_a_run_that_diverges_is_a_row_and_not_the_end(tmp_path, trained):
  runs = some_runs(**{'inner.learning_rate': 1e3}) + some_runs()
  rows = rows_of(run_all(runs, tmp_path))
  assert [row['val_loss'] for row in rows[:4]] == [np.inf] * 4
  assert all('is nan at step 3' in row['diverged'] for row in rows[:4])
  assert all(np.isfinite(row['val_loss']) for row in rows[4:])
  assert json.loads(rows[0]['config'])['inner.learning_rate'] == 1e3
  run_all(runs, tmp_path)
  assert len(trained) == 8  # It is not tried again.


def test_a_run_goes_on_from_another_and_checkpoints_are_kept_for_it(tmp_path, trained):
  scale = make_scale('test')
  before = scale.runs({'warm': {'method': 'ddp', 'stop_at': 4}}, keep_checkpoints=True)
  after = scale.runs({'desloc': {'restore.allow': 'method'}}, after=before)
  assert with_those_before(after)[0] is before[0]
  run_all(after, tmp_path)
  assert [config.method for config in trained] == ['ddp', 'desloc', 'ddp', 'desloc']
  assert (before[0].folder(tmp_path) / 'checkpoints').exists()
  assert not (after[0].folder(tmp_path) / 'checkpoints').exists()
  assert after[0].key != scale.runs({'desloc': {'restore.allow': 'method'}})[0].key
  # What did not have to keep its checkpoints is trained again by who needs them.
  other = tmp_path / 'other'
  run_all(scale.runs({'warm': {'method': 'ddp', 'stop_at': 4}}), other)
  run_all(after, other)
  assert [config.method for config in trained[4:]] == [
    'ddp',
    'ddp',
    'ddp',
    'desloc',
    'ddp',
    'desloc',
  ]


def test_what_goes_on_from_a_run_that_diverged_has_diverged(tmp_path, trained):
  scale = make_scale('test')
  options = {'inner.learning_rate': 1e3}
  before = scale.runs({'warm': {'stop_at': 4, **options}}, keep_checkpoints=True)
  results = run_all(scale.runs({'desloc': options}, after=before), tmp_path)
  assert [result.diverged for result in results] == [
    'warm, seed 0 diverged',
    'warm, seed 1 diverged',
  ]
  assert all(result.loss == np.inf for result in results)


def test_a_config_that_cannot_work_is_named_before_anything_is_trained(tmp_path, trained):
  with pytest.raises(UserError, match=r'^ddp, seed 0: seq_len is 4096, longer'):
    run_all(some_runs()[:1] + some_runs(seq_len=4096)[1:], tmp_path)
  assert not trained


SHARED_WORK = """
import pathlib, sys, time
from experiments import runner
from experiments.progress import Progress
from experiments.scales import make_scale
from tests import stub
def train(config, workdir):
  print('trains', config.periods.params, flush=True)
  time.sleep(0.2)
  return stub.train(config, workdir)
runner.train = train
runner.contextlib.redirect_stdout = lambda file: file
runner._WAIT_S = 0.05
runs = make_scale('test').with_seeds(1).runs({k: {'periods.params': k} for k in range(1, 13)})
results = runner.run_all(runs, pathlib.Path(sys.argv[1]), Progress({}, tell=lambda line: None))
print('got', len(results))
"""


def test_processes_divide_the_runs_and_a_killed_one_gives_its_run_back(tmp_path):
  start = lambda: subprocess.Popen(
    [sys.executable, '-c', SHARED_WORK, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
  )
  doomed = start()
  assert doomed.stdout.readline() == 'trains 1\n'
  doomed.kill()  # It holds the lock of the first run.
  doomed.wait()
  processes = [start() for _ in range(2)]
  outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  assert [lines[-1] for lines in outputs] == ['got 12', 'got 12']
  trained = [line for lines in outputs for line in lines if line.startswith('trains')]
  assert sorted(trained) == sorted(f'trains {k}' for k in range(1, 13))


def test_processes_of_a_command_share_its_cores_and_end_with_it():
  cores = os.sched_getaffinity(0)
  if len(cores) < 2:
    pytest.skip('there is one core')
  with pytest.raises(KeyError), shared(2, 'http.server', ['0']):  # It would serve for ever.
    assert 0 < len(os.sched_getaffinity(0)) < len(cores)
    raise KeyError
  assert os.sched_getaffinity(0) == cores
  for count in (0, len(cores) + 1):
    with pytest.raises(UserError, match=f'--processes is {count}; expected 1 to {len(cores)}'):
      with shared(count, 'http.server', ['0']):
        pass


@pytest.mark.parametrize(
  'args', [['--x=1', '--n', '2', '--y'], ['--n=2', '--x=1', '--y'], ['--x=1', '--y', '--n', '2']]
)
def test_an_option_is_taken_out_however_it_is_written(args):
  assert without_option(args, '--n') == ['--x=1', '--y']


def test_the_best_of_a_seed_is_chosen_by_the_others():
  losses = {'lucky once': [1.0, 5.0, 5.0], 'good': [2.0, 3.0, 4.0]}
  groups = {
    name: [types.SimpleNamespace(seed=seed, loss=loss) for seed, loss in enumerate(values)]
    for name, values in losses.items()
  }
  # Without seed 1 both have a mean of 3.0, and the first is taken.
  assert [result.loss for result in beyond.best_by_others(groups)] == [2.0, 5.0, 4.0]
  assert [result.loss for result in beyond.best_by_others({'one': groups['good'][:1]})] == [2.0]


def test_confidence_intervals_are_those_of_printed_tables():
  # t for 95%: 12.7062 at 1 degree of freedom, 4.30265 at 2, 2.77645 at 4.
  assert confidence_interval([1.0, 3.0]) == pytest.approx((2 - 12.7062, 2 + 12.7062), rel=1e-4)
  assert confidence_interval([1.0, 2.0, 3.0]) == pytest.approx(
    (2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), rel=1e-4
  )
  low, high = confidence_interval([2.0, 4.0, 4.0, 4.0, 6.0])  # Deviation sqrt(2).
  assert (low, high) == pytest.approx(
    (4 - 2.77645 * (2 / 5) ** 0.5, 4 + 2.77645 * (2 / 5) ** 0.5), rel=1e-4
  )
  assert confidence_interval([1.0]) == (-np.inf, np.inf)


@pytest.mark.parametrize(
  ('values', 'verdict'),
  [
    ([0.1, 0.2, 0.3], 'holds'),  # Up to 0.45.
    ([0.5, 1.0, 1.5], 'open'),
    ([3.0, 3.1, 3.2], 'does not hold'),
    ([0.1], 'open'),
    ([0.1, np.inf, 0.2], 'does not hold'),
  ],
)
def test_a_check_holds_where_all_of_the_interval_does(values, verdict):
  check = Check('a is at most 1% above b', values, at_most=1, unit='%')
  assert check.verdict == verdict
  assert str(check).endswith(f': {verdict}')


def test_a_check_says_all_that_it_rests_on():
  check = Check('at most 1% above', [0.2, 0.3, 0.4], at_most=1, unit='%', paper='0%')
  assert str(check) == ('at most 1% above: 0.3% (n = 3, 95% CI 0.0516 to 0.548%; paper: 0%): holds')
  assert str(Check('170x', [170.667], 170, 171, 'x', exact=True)) == '170x: 171x (counted): holds'
  assert Check('equal bytes', [1.0, 1.2], 0.9, 1.1, 'x', exact=True).verdict == 'does not hold'


def test_spreads_and_tables_as_text():
  assert mean_spread([1.0, 2.0]) == '1.5000 ± 0.7071'
  assert mean_spread([1.0]) == '1.0000'
  assert mean_spread([1.0, np.inf]) == '1.0000, 1 diverged'
  assert mean_spread([np.inf]) == 'diverged'
  assert markdown([('a|b', 'c'), ('1', '2')]) == '| a\\|b | c |\n|---|---:|\n| 1 | 2 |'


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


MEASURED = {
  moment: {str(k): rate * min(k, 14) for k in range(1, 33)}
  for moment, rate in (('mu', 0.05), ('nu', 0.001))
}
WITH_RUNS = [name for name in all_experiments.NAMES if name not in ('toy', 'wallclock')]


@pytest.mark.parametrize('name', WITH_RUNS)
def test_an_experiment_reports_on_its_runs(name, tmp_path, trained, monkeypatch):
  experiment = importlib.import_module(f'experiments.{name}')
  if name == 'half_lives':
    monkeypatch.setattr(experiment, 'measure', lambda workdir: MEASURED)
  scale = make_scale('test')
  runs = experiment.runs(scale)
  results = run_all(runs, tmp_path / 'runs')
  assert len(trained) == len(with_those_before(runs))
  report = experiment.report(results, scale)
  write(report, tmp_path / 'results', name, 'the command')
  rows = list(csv.DictReader((tmp_path / 'results' / 'results.csv').open()))
  assert len(rows) == len(runs)
  assert {row['seed'] for row in rows} == {'0', '1'}
  assert all(float(row['loss']) > 0 and row['versions'] and row['config'] for row in rows)
  written = (tmp_path / 'results' / 'results.md').read_text()
  for check in report.checks:
    assert check.claim in written
    assert check.exact or len(check.values) == scale.seeds, check.claim
  assert (tmp_path / 'results' / f'{name}.png').stat().st_size > 10_000


@pytest.mark.parametrize('name', WITH_RUNS)
@pytest.mark.parametrize('scale', ['cpu', 'gpu', 'gpu:sotu', 'paper'])
def test_the_configs_of_all_scales_can_work(name, scale):
  runs = with_those_before(importlib.import_module(f'experiments.{name}').runs(make_scale(scale)))
  for run in runs:
    check_config(run.config)
  assert len({run.key for run in runs}) == len(runs)


def test_no_run_at_cpu_scale_reads_a_text_twice():
  least = min(
    sum(len(document.text.encode()) for document in read_documents('sotu', f'year:{a}-{b}'))
    for a, b in heterogeneous.ERAS
  )
  for name in WITH_RUNS:
    for run in importlib.import_module(f'experiments.{name}').runs(make_scale('cpu')):
      config = run.config
      tokens = config.workers * config.batch_size * (config.seq_len + 1) * config.steps
      assert tokens < 0.9 * 4 * least  # All of the text, or each worker its era; 5% are held out.


@pytest.mark.parametrize('moment', [half_lives.B1, 0.9], ids=['as it should', 'another half-life'])
def test_the_half_way_of_a_noisy_moment_is_its_half_life(moment):
  # The squared change of an average of noise over K steps is 1 - b^K of what it ends at.
  changes = {str(k): math.sqrt(1 - moment**k) for k in range(4, 129, 4)}
  result = Result(None, None, {'measured': {'mu': changes}}, '', 0.0)
  assert half_lives.half_way(result) == pytest.approx(half_lives.half_life(moment), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['nesterov', 'half_lives', 'failures', 'heterogeneous'])
def test_a_cut_of_what_is_special_to_an_experiment_really_runs(name, tmp_path, capsys):
  experiment = importlib.import_module(f'experiments.{name}')
  scale = make_scale('test').with_seeds(1)
  cut = {'nesterov': slice(2, 3), 'failures': slice(2, 5, 2), 'heterogeneous': slice(-2, -1)}
  runs = experiment.runs(scale)[cut.get(name, slice(1))]
  results = run_all(runs, tmp_path)
  assert all(np.isfinite(result.loss) for result in results)
  if name == 'nesterov':  # From the checkpoint of DDP.
    restored = [line['restored'] for line in results[0].lines if 'restored' in line]
    assert "method (was 'ddp', is 'desloc_nesterov')" in restored[0]
  if name == 'half_lives':
    changes = results[0].summary['measured']
    assert 0 < changes['nu']['1'] and 0 < changes['mu']['1'] < changes['mu']['2']
  if name == 'failures':
    away = [line['away'] for line in results[0].lines if 'away' in line]
    assert away[0] == [4, 5, 6, 7] and away[-1] == []
    assert experiment.jump(results[0], scale) > 0


@pytest.mark.slow
def test_the_toy_is_reported():
  report = toy.report([], make_scale('test'))
  assert len(report.rows) == 2 * 4 * toy.SEEDS
  assert len(report.checks) == 6


@pytest.mark.slow
def test_all_experiments_are_one_command_that_can_be_asked_for_help():
  process = command('all', '--help')
  output, errors = process.communicate()
  assert process.returncode == 0, errors
  assert '--scale' in output and '--config.periods.params=16' in output


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


@pytest.mark.slow
def test_the_benchmark_compares_all_programs():
  process = command('benchmark', '--config=configs/tiny.py', '--rounds=3',
                    *(f'--config.{option}' for option in SMALL))  # fmt: skip
  output, errors = process.communicate()
  assert process.returncode == 0, errors
  names = [line.split('  ')[0] for line in output.splitlines()[2:6]]
  assert names == ['plain', 'desloc, local step', 'desloc, all three sync', 'ddp']


def test_a_run_is_told_apart_by_what_it_goes_on_from():
  config = make_scale('test').config
  run = Run({}, config)
  assert run.key == Run({'variant': 'x'}, changed(config, {'restore.allow': 'method'})).key
  assert run.key != Run({}, config, after=run).key


@pytest.mark.parametrize('count', [1, 3, 4, 5, 7])
def test_there_are_as_many_panels_as_asked_for(count):
  figure, axes = plots.panels(count, 'title')
  assert len(axes) == len(figure.axes) == count
