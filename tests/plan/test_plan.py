"""The planner against numbers by hand, XLA's plans of memory, and the paper's days."""

import csv
import functools
import pathlib
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs import gpt
from desloc_jax import model as model_lib
from desloc_jax.errors import UserError
from desloc_jax.options.changes import changed_options
from desloc_jax.options.checks import check_config
from desloc_jax.options.values import flatten
from desloc_jax.plan import make_plan, plan_text
from desloc_jax.plan.timing import (
  all_reduce_seconds,
  compute_seconds,
  Link,
  period_for_share,
  step_time,
  StepTime,
  with_value_size,
)
from desloc_jax.programs.ledger import Ledger
from desloc_jax.train.setup.build_periods import syncs_of_run
from desloc_jax.train.step import accumulate
from experiments.paper import paper_days, wallclock
from experiments.report import write
from experiments.scales import make_scale
from tests.environment import environment
from tests.runs import small_config

ROOT = pathlib.Path(__file__).parents[2]
# 4 workers and 1000 values of 4 bytes; a worker sends 100 kB/s, and a message takes 10 ms.
LINK = Link(bytes_per_s=100e3, latency_s=0.01)
DDP = Ledger(4, {'gradients': 4000}, {'gradients': 1})
LOCAL = Ledger(4, {'params': 4000, 'mu': 4000, 'nu': 4000}, {'params': 10, 'mu': 30, 'nu': 60})
# 2 * 3/4 * 4000 bytes at 100 kB/s are 60 ms, and 2 * 3 messages of 10 ms are 60 ms too.
SYNC_S = 0.12


def test_a_step_takes_its_arithmetic_and_its_share_of_each_sync():
  assert all_reduce_seconds(DDP, 4000, LINK) == pytest.approx(SYNC_S)
  assert compute_seconds(12e12, devices=2, peak_flops=10e12, mfu=0.4) == pytest.approx(1.5)
  assert step_time(DDP, LINK, 1.0).total_s == pytest.approx(1.12)
  local = step_time(LOCAL, LINK, 1.0)
  assert local.communication_s == pytest.approx(SYNC_S * 1.5 / 10)  # 1/10 + 1/30 + 1/60.
  assert local.share == pytest.approx(0.018 / 1.018)


def test_only_gradients_hide_behind_arithmetic():
  assert step_time(DDP, LINK, 1.0, overlap=0.1).communication_s == pytest.approx(0.02)
  assert step_time(DDP, LINK, 1.0, overlap=0.5).communication_s == 0.0
  assert step_time(LOCAL, LINK, 1.0, overlap=0.5) == step_time(LOCAL, LINK, 1.0)


def test_one_worker_waits_for_nobody():
  assert all_reduce_seconds(Ledger(1, {}, {}), 4000, LINK) == 0.0


def test_the_period_at_a_share_is_the_least_that_keeps_it():
  # 0.018 s at K_x = 10 are 0.18 / K_x; 1% of a step are 1/99 s beside 1 s of arithmetic.
  time = step_time(LOCAL, LINK, 1.0)
  assert period_for_share(10, time, 0.01) == 18  # 0.18 * 99 = 17.82.
  assert period_for_share(10, StepTime(1.0, 0.1), 0.5) == 1
  assert period_for_share(10, StepTime(1.0, 1.0), 0.5) == 10  # Exactly: no step more.


def test_smaller_values_are_fewer_bytes():
  assert with_value_size(LOCAL, 2).bytes_per_sync == dict.fromkeys(LOCAL.periods, 2000)


def test_the_plan_of_a_run_by_hand():
  config = small_config(
    'sotu', **{'model.vocab_size': 512, 'periods.params': 4, 'health.check': False}
  )
  config.update_from_flattened_dict(
    {'plan.bandwidth_gbps': 1.0, 'plan.latency_ms': 0.0, 'plan.peak_tflops': 1.0, 'plan.mfu': 0.5}
  )
  plan = make_plan(config)
  values = 512 * 32 + 2 * (12 * 32**2 + 2 * 32) + 32  # Embedding, 2 blocks, final norm.
  assert plan.parameters == values == 41_120
  assert plan.devices == 2  # Of 8, as many as share the 2 sequences of a worker.
  size = 4 * values
  assert plan.ledgers['desloc'].bytes_per_sync == dict.fromkeys(('params', 'mu', 'nu'), size)
  # 6 operations a matmul parameter and token, and 12 * 2 * 32 * 32 of attention, on 2 * 32 tokens.
  flops = (6 * (512 * 32 + 24 * 32**2) + 12 * 2 * 32 * 32) * 2 * 32
  compute_s = flops / (2 * 1e12 * 0.5)
  average_s = 1.5 * size * 8 / 1e9
  averages = {'ddp': 1, 'local_adam': 3 / 4, 'favg_opt': 1 / 4, 'desloc': 1.5 / 4}
  for method, rate in averages.items():
    expected = compute_s + rate * average_s
    assert plan.times[method].total_s == pytest.approx(expected)
    assert plan.days(method) == pytest.approx(12 * expected / 86_400)
  memory = {name: plan.memory[name] for name in ('parameters', 'consensus copy', 'gradients')}
  assert memory == dict.fromkeys(memory, size / 2)
  # Two moments, and the optimizer's step count.
  assert plan.memory['moments'] == pytest.approx(2 * size / 2, rel=1e-3)


def test_ddp_keeps_one_model_and_several_micro_batches_two_gradients():
  options = {'model.vocab_size': 512, 'batch_size': 8}
  one = make_plan(small_config('sotu', method='ddp', **options)).memory
  assert one['consensus copy'] == 0 and one['gradients'] == one['parameters'] > 0
  four = make_plan(small_config('sotu', accumulation=4, **options)).memory
  assert four['gradients'] == 2 * four['parameters'] == 2 * four['consensus copy']


@pytest.mark.parametrize('remat, micro_batches', [('none', 1), ('dots', 2), ('full', 1)])
def test_memory_is_about_what_xla_plans(remat, micro_batches):
  """On a CPU, where attention holds its scores."""
  model = model_lib.GPTConfig(1024, 8, 256, 4, 256, remat=remat, attention='xla', loss_chunk=512)
  params = jax.eval_shape(functools.partial(model_lib.init_params, model), jax.random.key(0))
  loss = functools.partial(model_lib.next_token_loss_and_metrics, config=model)

  def step(params, tokens):
    return jax.tree.map(lambda p, g: p - g, params, accumulate(loss, params, tokens)[1])

  tokens = jax.ShapeDtypeStruct((micro_batches, 4, 257), jnp.int32)
  compiled = jax.jit(step, donate_argnums=0).lower(params, tokens).compile()
  gradients = 4 * model_lib.parameter_count(model) * micro_batches
  estimate = model_lib.activation_bytes(model, sequences=4) + gradients
  assert estimate == pytest.approx(compiled.memory_analysis().temp_size_in_bytes, rel=1 / 3)


def test_growth_and_warm_up_are_counted():
  options = {'model.vocab_size': 512, 'period_growth': 4.0, 'sync_warmup_steps': 5,
             'steps': 400, 'plan.memory_gb': 1e-5}  # fmt: skip
  config = small_config('sotu', **options)
  plan = make_plan(config)
  text = plan_text(plan)
  assert 'Means over the run' in text and 'Too much' in text
  start = {name: plan.periods[name] for name in ('params', 'mu', 'nu')}
  for name, count in syncs_of_run(start, config, plan.clock).items():
    assert plan.ledgers['desloc'].periods[name] == 400 / count
    assert 5 < count < 5 + 400 / start[name]
    assert f'{start[name]}..{4 * start[name]}' in text


@pytest.mark.parametrize(('share', 'verdict'), [(0.75, 'Too much: 120.0%'), (0.95, 'Fits: 94.7%')])
def test_a_model_fits_into_what_jax_takes_of_a_device(share, verdict):
  config = small_config('sotu', **{'model.vocab_size': 512, 'plan.memory_fraction': share})
  total = sum(make_plan(config).memory.values())
  config.plan.memory_gb = total / 0.9 / 1e9  # So it takes 90% of the device.
  text = plan_text(make_plan(config))
  assert verdict in text and f'XLA_PYTHON_CLIENT_MEM_FRACTION={share:g}' in text


BAD = {
  'plan.bandwidth_gbps': (0.0, 'plan.bandwidth_gbps is 0.0; expected a number above 0, finite'),
  'plan.latency_ms': (-1.0, 'plan.latency_ms is -1.0'),
  'plan.bytes_per_value': (float('nan'), 'plan.bytes_per_value is nan'),
  'plan.overlap': (1.0, r'plan.overlap is 1.0; expected a number in \[0, 1\)'),
  'plan.devices_per_worker': (-1, 'plan.devices_per_worker is -1'),
  'plan.peak_tflops': (float('inf'), 'plan.peak_tflops is inf'),
  'plan.mfu': (40.0, r'plan.mfu is 40.0; expected a number in \(0, 1\]'),
  'plan.memory_gb': (0.0, 'plan.memory_gb is 0.0'),
  'plan.memory_fraction': (1.5, r'plan.memory_fraction is 1.5; expected a number in \(0, 1\]'),
  'plan.share': (1.0, r'plan.share is 1.0; expected a number in \(0, 1\)'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_value_is_named(name):
  value, message = BAD[name]
  with pytest.raises(UserError, match=message):
    check_config(small_config('sotu', **{name: value}))


def test_devices_that_cannot_share_a_micro_batch_are_refused():
  with pytest.raises(UserError, match='is 2, which 3 devices of a worker .* cannot share'):
    make_plan(small_config('sotu', **{'plan.devices_per_worker': 3, 'model.vocab_size': 512}))


def test_a_run_goes_on_with_other_options_of_the_plan():
  config = small_config('sotu', **{'plan.mfu': 0.5})
  assert changed_options(config, flatten(small_config('sotu'))) == {}


@pytest.fixture(scope='module')
def paper_plans():
  return {size: paper_days.plan_of(size) for size in paper_days.SHAPES}


def test_the_sizes_of_the_paper_are_about_what_they_are_called(paper_plans):
  sizes = {size: round(plan.parameters / 1e9, 2) for size, plan in paper_plans.items()}
  assert sizes == {'1B': 1.31, '7B': 6.65, '13B': 12.84}


def test_the_days_of_the_paper(paper_plans):
  """Nine numbers to two decimals, by two unknowns a model and one for all three models."""
  fits = {size: paper_days.fit(size, plan, 0.24) for size, plan in paper_plans.items()}
  assert paper_days.largest(paper_days.residuals(fits, paper_plans)) < paper_days.ROUNDING


def test_the_days_of_the_paper_where_ddp_hides_nothing(paper_plans):
  """With no overlap DES-LOC's own saving over Local Adam is larger in the paper than here."""
  fits = {size: paper_days.fit(size, plan, 0.0) for size, plan in paper_plans.items()}
  errors = paper_days.residuals(fits, paper_plans)
  for (size, method), error in errors.items():
    assert abs(error) < max(0.001 * paper_days.PAPER_DAYS[size][method], paper_days.ROUNDING)
  assert errors['13B', 'desloc'] == pytest.approx(0.056, abs=0.001)
  assert errors['13B', 'local_adam'] == pytest.approx(-0.057, abs=0.001)


def test_no_single_setting_explains_the_paper(paper_plans):
  """One batch and number of devices for all three models misses by up to a third."""
  fits = {size: paper_days.fit(size, plan, 0.24) for size, plan in paper_plans.items()}
  _, _, shared = paper_days.one_setting(fits, paper_plans)
  errors = paper_days.residuals(shared, paper_plans)
  relative = [abs(e) / paper_days.PAPER_DAYS[size][m] for (size, m), e in errors.items()]
  assert 0.3 < max(relative) < 0.34


def test_the_planner_alone_gives_the_days_of_7b(paper_plans):
  """8 H100s at an MFU of 0.34 and 0.23M tokens a step, which is 19 tokens a parameter in all."""
  run = paper_days.fit('7B', paper_plans['7B'], 0.24)
  config = gpt.get_config('1b')
  layers, width, heads = paper_days.SHAPES['7B']
  config.model.update({'layers': layers, 'width': width, 'heads': heads})
  config.plan.update({'latency_ms': 0.0, 'overlap': 0.24, 'devices_per_worker': 2})
  config.batch_size, config.accumulation, config.steps = 28, 14, round(run.steps)
  config.plan.mfu *= make_plan(config).times['ddp'].compute_s / run.compute_s
  # A token takes 6 * 6.649e9 + 12 * 32 * 4096 * 2048 = 43.11e9 operations and a step 3.72 s:
  # 4 * 28 * 2048 * 43.11e9 / (8 * 989e12 * 3.72) = 0.336.
  assert config.plan.mfu == pytest.approx(0.336, abs=0.001)
  plan = make_plan(config)
  for method, days in paper_days.PAPER_DAYS['7B'].items():
    assert plan.days(method) == pytest.approx(days, abs=paper_days.ROUNDING)


def test_the_experiment_writes_its_table_and_plot(tmp_path):
  report = wallclock.report([], make_scale('test'))
  write(report, tmp_path, 'wallclock', 'the command')
  written = (tmp_path / 'results.md').read_text()
  assert 'From 0.22 to 0.25 all nine are within rounding.' in written
  assert report.checks[0].verdict == 'holds' and '`the command`' in written
  # What was measured on the wire: five methods at three rates, with two and with four processes.
  assert len(report.checks[1].values) == 2 * 5 * 3
  rows = list(csv.DictReader((tmp_path / 'results.csv').open()))
  assert len(rows) == 3 * 4 * len(wallclock.GBPS)  # Models, methods, bandwidths.
  marked = [row for row in rows if row['paper_days']]
  assert len(marked) == 9 and {row['gbps'] for row in marked} == {'100'}
  for row in marked:
    assert float(row['days']) == pytest.approx(float(row['paper_days']), abs=paper_days.ROUNDING)
  assert (tmp_path / 'wallclock.png').exists()


def _cpu_seconds():
  """Of processes that have ended: seconds on the clock are also those of others on this machine."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize('name', ['gpt_1b', 'gpt_1_7b'])
def test_the_command_needs_no_data(name, tmp_path):
  begin = _cpu_seconds()
  result = subprocess.run(
    [sys.executable, ROOT / 'run.py', f'--config={ROOT}/configs/{name}.py', '--mode=plan',
     '--config.plan.bandwidth_gbps=10'],
    cwd=tmp_path, capture_output=True, text=True, timeout=60,
    env=environment(JAX_PLATFORMS='', PYTHONPATH=str(ROOT)),
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  assert result.stderr == ''
  assert _cpu_seconds() - begin < 15
  starts = [line.split()[0] for line in result.stdout.splitlines() if line]
  for row in ('params', 'mu', 'nu', 'activations', 'ddp', 'local_adam', 'favg_opt', 'desloc'):
    assert row in starts, row
  assert not list(tmp_path.iterdir())


def test_the_command_refuses_a_bad_value_in_one_line():
  result = subprocess.run(
    [sys.executable, 'run.py', '--config=configs/tiny.py', '--mode=plan', '--config.plan.mfu=2'],
    cwd=ROOT, capture_output=True, text=True, timeout=60,
  )  # fmt: skip
  assert result.returncode == 2
  assert result.stderr == 'error: plan.mfu is 2.0; expected a number in (0, 1].\n'
