"""The experiments' own code: mostly with a stub in the trainer's place, else on runs of seconds."""

import collections
import csv
import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from desloc_jax.data.reading.documents import read_documents
from desloc_jax.errors import UserError
from desloc_jax.options.checks import check_config
from desloc_jax.options.values import flatten
from desloc_jax.plan import estimate
from desloc_jax.train import loop
from experiments import all as all_experiments, runner
from experiments.all import experiment_of
from experiments.command import check_followed, check_kept, parse
from experiments.extensions import finalists, frontier, tuned, tuning
from experiments.paper import communication, half_lives, heterogeneous, muon, toy
from experiments.report import write
from experiments.runs import Result, with_those_before
from experiments.scales import make_scale
from tests.experiment_runs import command, run_all, SMALL


def test_methods_differ_in_nothing_but_their_own_options(trained):
  scale = make_scale('test')
  base = flatten(scale.config)
  for run in communication.runs(scale):
    options = flatten(run.config)
    differing = {name for name in options if options[name] != base[name]}
    assert differing <= {'method', 'seed', *communication.VARIANTS[run.labels['variant']]}


MEASURED = {
  moment: {str(k): rate * min(k, 14) for k in range(1, 33)}
  for moment, rate in (('mu', 0.05), ('nu', 0.001))
}


UNRUN = ('byzantine',)  # It has no results yet.
# `tuning` has a test of its own, with those that are made of it.
WITH_RUNS = [n for n in (*all_experiments.NAMES, *UNRUN) if n not in ('toy', 'wallclock', 'tuning')]


@pytest.mark.parametrize('name', WITH_RUNS)
def test_an_experiment_reports_on_its_runs(name, tmp_path, trained, monkeypatch):
  experiment = experiment_of(name)
  if name == 'half_lives':
    monkeypatch.setattr(experiment, 'measure', lambda workdir: MEASURED)
  if name == 'syncs':
    monkeypatch.setattr(experiment, 'measure', lambda workdir: {'sync_s': 0.01, 'memory_bytes': 1})
  if name == 'disjoint':
    monkeypatch.setattr(experiment, 'largest_parameter', lambda workdir: 1.0)
  if name == 'neighbours':  # Plans without what others send: it takes most of their time.
    monkeypatch.setattr(estimate, 'COMPARED', ())
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


def test_methods_are_tuned_on_seeds_that_their_results_do_not_use(tmp_path, trained):
  scale = make_scale('test')
  swept = tuning.runs(scale)
  counts = collections.Counter(run.labels['variant'] for run in swept)
  assert set(counts.values()) == {8 * tuning.SEEDS}
  write(tuning.report(run_all(swept, tmp_path / 'runs'), scale), tmp_path / 'tuning-test', 't', '')
  scale = dataclasses.replace(scale, results=tmp_path)
  again = finalists.runs(scale)
  assert {run.config.seed for run in again}.isdisjoint({run.config.seed for run in swept})
  counts = collections.Counter(run.labels['variant'] for run in again)
  assert set(counts.values()) == {finalists.FINALISTS * scale.seeds}
  report = finalists.report(run_all(again, tmp_path / 'runs'), scale)
  write(report, tmp_path / 'finalists-test', 'f', '')
  best = finalists.best(scale)
  assert [row[0] for row in report.table if row[-1] == 'yes'] == list(tuning.METHODS)
  for method in tuning.METHODS:
    assert best[method] in tuning.candidates(method)
  for experiment in (tuned, frontier):
    runs = experiment.runs(scale)
    for run in runs:
      check_config(run.config)
    assert not {run.config.seed for run in runs} & {run.config.seed for run in (*swept, *again)}
    report = experiment.report(run_all(runs, tmp_path / 'runs'), scale)
    assert all(check.exact or len(check.values) == scale.seeds for check in report.checks)


@pytest.mark.parametrize('name', WITH_RUNS)
@pytest.mark.parametrize('scale', ['cpu', 'cpu-long', 'gpu', 'gpu:sotu', 'paper'])
def test_the_configs_of_all_scales_can_work(name, scale):
  few = make_scale(scale).with_seeds(2)
  runs = with_those_before(experiment_of(name).runs(few))
  for run in runs:
    check_config(run.config)
  assert len({run.key for run in runs}) == len(runs)


def test_no_run_on_cpus_reads_a_text_twice():
  least = min(
    sum(len(document.text.encode()) for document in read_documents('sotu', f'year:{a}-{b}'))
    for a, b in heterogeneous.ERAS
  )
  for scale, name in itertools.product(('cpu', 'cpu-long'), WITH_RUNS):
    one = make_scale(scale).with_seeds(1)
    for run in experiment_of(name).runs(one):
      config = run.config
      tokens = config.workers * config.batch_size * (config.seq_len + 1) * config.steps
      assert tokens < 0.9 * 4 * least  # All of the text, or each worker its era; 5% are held out.


@pytest.mark.parametrize('moment', [half_lives.B1, 0.9], ids=['as it should', 'another half-life'])
def test_the_half_way_of_a_noisy_moment_is_its_half_life(moment):
  # The squared change of an average of noise over K steps is 1 - b^K of what it ends at.
  changes = {str(k): math.sqrt(1 - moment**k) for k in range(4, 129, 4)}
  result = Result(None, None, {'measured': {'mu': changes}}, '', 0.0)
  assert half_lives.half_way(result) == pytest.approx(half_lives.half_life(moment), rel=0.05)


# The variant of each experiment that needs the most of the trainer.
CUT = {
  'communication': 'mt_dao',
  'periods': 'K_v = 8, others 2',
  'half_lives': 'b2 = 0.95',
  'nesterov': 'desloc_nesterov',
  'muon': 'DES-LOC-Muon',
  'heterogeneous': 'desloc',
  'disjoint': 'desloc, no guard',
  'failures': 'desloc',
  'scale': 'desloc',
  'beyond': 'slow first moment (qh_adam)',
  'syncs': 'topk, both',
  'delays': 'all three, overwrite, delay 2',
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CUT)
def test_a_cut_of_every_experiment_really_runs(name, tmp_path, monkeypatch):
  """On one device, as the command has it: a step for eight compiles twice as long."""
  monkeypatch.setattr(runner, 'train', lambda *run: loop.train(*run, jax.devices()[:1]))
  experiment = experiment_of(name)
  scale = dataclasses.replace(make_scale('test').with_seeds(1), maps=False)
  runs = [run for run in experiment.runs(scale) if run.labels['variant'] == CUT[name]]
  results = run_all(runs, tmp_path)
  assert results and all(np.isfinite(result.loss) for result in results)
  if name == 'nesterov':  # From the checkpoint of DDP.
    restored = [line['restored'] for line in results[0].lines if 'restored' in line]
    assert "method (was 'ddp', is 'desloc_nesterov')" in restored[0]
  if name == 'half_lives':
    changes = results[0].summary['measured']
    assert 0 < changes['nu']['1'] and 0 < changes['mu']['1'] < changes['mu']['2']
  if name == 'disjoint':
    assert [result.summary['measured'] > 100 for result in results] == [True, True, False]
  if name == 'syncs':
    parameters = results[0].summary['parameters']
    measured = results[0].summary['measured']
    # topk: the error, and of mu an anchor and its error; int4: the error. In float32.
    assert measured['memory_bytes'] == 4 * 4 * parameters and measured['sync_s'] > 0
  if name == 'failures':
    away = [line['away'] for line in results[0].lines if 'away' in line]
    assert away[0] == [4, 5, 6, 7] and away[-1] == []
    assert experiment.jump(results[0], scale) > 0


@pytest.mark.slow
def test_the_toy_is_reported():
  report = toy.report([], make_scale('test'))
  settings = len(toy.RATES) * len(toy.DECAYS)
  assert len(report.rows) == 4 * (toy.SEEDS + settings * toy.MAP_SEEDS)
  assert len(report.checks) == 3


def test_an_option_that_the_experiment_sets_itself_is_refused():
  args = ['--scale=test', '--config.inner.learning_rate=0.01', '--config.steps=6']
  _, scale = parse('experiments.paper.muon', '', args)
  with pytest.raises(UserError, match=r'learning_rate=0.01 would change no run.* to 0.02\.'):
    check_followed(args, scale.config, muon.runs(scale))
  for followed in (args[::2], ['--scale=test', '--config.inner.learning_rate=0.02']):
    _, scale = parse('experiments.paper.muon', '', followed)
    check_followed(followed, scale.config, muon.runs(scale))
  check_followed(args[1:2], scale.config, muon.runs(scale), ('inner.learning_rate',))
  with pytest.raises(UserError, match='0.01 would change nothing: this experiment trains no runs'):
    check_followed(args, scale.config, toy.runs(scale))


@pytest.mark.slow
def test_all_experiments_are_one_command_that_can_be_asked_for_help():
  process = command('all', '--help')
  output, errors = process.communicate()
  assert process.returncode == 0, errors
  assert '--scale' in output and '--config.periods.params=16' in output


@pytest.mark.slow
@pytest.mark.parametrize(
  ('arguments', 'names'),
  [
    ([], ['plain', 'desloc, local step', 'desloc, all three sync', 'ddp']),
    (['--guard'], ['without the guard', 'with it']),
  ],
)
def test_the_benchmark_compares_programs(arguments, names):
  process = command('systems.benchmark', '--config=configs/tiny.py', '--rounds=3', *arguments,
                    *(f'--config.{option}' for option in SMALL))  # fmt: skip
  output, errors = process.communicate()
  assert process.returncode == 0, errors
  assert [line.split('  ')[0] for line in output.splitlines()[2 : 2 + len(names)]] == names


def test_results_are_not_replaced_by_those_of_less(tmp_path):
  folder = tmp_path / 'periods-test'
  folder.mkdir()
  (folder / 'results.csv').write_text('seed\n' + '0\n' * 3)
  (folder / 'results.md').write_text('# Title\n\n`python -m experiments.paper.periods`\n')
  runs = [object()] * 3
  check_kept(folder, runs, ['--scale=test'])
  check_kept(folder, [], ['--config.steps=9'])  # It trains none.
  check_kept(tmp_path, runs[:1], ['--config.steps=9'])  # There are no results.
  for fewer, args in ((runs[:2], ['--seeds=2']), (runs, ['--config.steps=9'])):
    with pytest.raises(UserError, match='has the results of 3 runs, by .*Give another --results'):
      check_kept(folder, fewer, args)
