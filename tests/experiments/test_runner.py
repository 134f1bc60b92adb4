"""The runner of experiments, with a stub for a trainer: what is trained, by whom, and when again."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from desloc_jax.errors import UserError
from experiments.command import without_option
from experiments.progress import Progress
from experiments.report import rows_of
from experiments.runs import Run, with_those_before
from experiments.scales import changed, make_scale
from experiments.share import shared
from tests.experiment_runs import ROOT, run_all, some_runs


def test_a_finished_run_is_not_repeated_and_only_what_is_computed_counts(tmp_path, trained, capsys):
  runs = some_runs()
  first = run_all(runs, tmp_path)
  assert len(trained) == 4
  assert [result.run for result in first] == runs
  assert re.search(r'\[4 of 4, 0:0\d:\d\d left\] ddp, seed 1\n', capsys.readouterr().out)
  again = run_all(some_runs(**{'checkpoint.every': 3, 'checkpoint.keep': 7}), tmp_path)
  assert len(trained) == 4
  assert [result.summary for result in again] == [result.summary for result in first]
  run_all(some_runs(**{'periods.params': 3}), tmp_path)
  assert len(trained) == 8
  run_all(some_runs(**{'eval.sequences': 9}), tmp_path)  # Another validation loss.
  assert len(trained) == 12


def test_the_time_left_counts_what_other_processes_did(tmp_path, trained, monkeypatch):
  runs, lines = some_runs(), []
  monkeypatch.setattr(time, 'monotonic', lambda: 100.0)
  run_all(runs[:1], tmp_path)  # Before: that says nothing of the speed.
  progress = Progress(runs, tmp_path, lines.append)
  progress.begin(runs[1])
  run_all(runs[1:3], tmp_path)
  monkeypatch.setattr(time, 'monotonic', lambda: 160.0)
  progress.begin(runs[3])
  assert lines == ['[2 of 4] ddp, seed 0', '[4 of 4, 0:00:30 left] ddp, seed 1']


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
folder = pathlib.Path(sys.argv[1])
results = runner.run_all(runs, folder, Progress(runs, folder, tell=lambda line: None))
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


SHARES = """
import os, pathlib, time
from experiments.share import shared
with shared(2, 'http.server', ['0']):
  print(*pathlib.Path(f'/proc/self/task/{os.getpid()}/children').read_text().split(), flush=True)
  time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='children are found in /proc')
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason='there is one core')
def test_processes_end_with_one_that_is_terminated_between_runs():
  process = subprocess.Popen(
    [sys.executable, '-c', SHARES], stdout=subprocess.PIPE, text=True, cwd=ROOT
  )
  try:
    (child,) = process.stdout.readline().split()
    process.terminate()
    assert process.wait(timeout=30) == 143
    assert not pathlib.Path('/proc', child).exists()
  finally:
    process.kill()


@pytest.mark.parametrize(
  'args', [['--x=1', '--n', '2', '--y'], ['--n=2', '--x=1', '--y'], ['--x=1', '--y', '--n', '2']]
)
def test_an_option_is_taken_out_however_it_is_written(args):
  assert without_option(args, '--n') == ['--x=1', '--y']


def test_a_run_is_told_apart_by_what_it_goes_on_from():
  config = make_scale('test').config
  run = Run({}, config)
  assert run.key == Run({'variant': 'x'}, changed(config, {'restore.allow': 'method'})).key
  assert run.key != Run({}, config, after=run).key
