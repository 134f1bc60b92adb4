"""Steps compiled for devices that are not there: here for CPUs that stand for the chips of a slice."""

import functools
import importlib.util
import pathlib
import subprocess
import sys

from absl import logging
import jax
import pytest

from desloc_jax.errors import UserError
from desloc_jax.options import topology as topology_lib
from desloc_jax.options.changes import changed_options
from desloc_jax.options.checks import check_config
from desloc_jax.options.topology import parse_topology, topology_devices, TopologyName
from desloc_jax.options.values import flatten
from desloc_jax.plan import compile as compile_lib, compile_step, compiled_text
from desloc_jax.plan.compile_table import (
  BETWEEN,
  EVERY_STEP,
  INSIDE,
  ON_CONDITION,
  sent_bytes,
  sync_bytes,
  traffic,
)
from desloc_jax.train.setup import mesh as mesh_lib
from experiments.systems import pods
from tests.environment import environment
from tests.runs import small_config

ROOT = pathlib.Path(__file__).parents[2]
STATE = ('parameters', 'consensus copy', 'moments', 'memory of syncs')
NO_LIBTPU = not importlib.util.find_spec('libtpu')


def config_of(**options):
  return small_config('nowhere', **{'model.vocab_size': 512, 'topology': 'v5e:2x4'} | options)


@pytest.fixture
def cpus(monkeypatch):
  """The 8 virtual CPUs of the tests in the place of a slice of 8 chips."""
  monkeypatch.setattr(compile_lib, 'topology_devices', lambda name: jax.devices())


def test_a_step_is_compiled_without_data_and_described(cpus):
  config = config_of(accumulation=2, batch_size=8)
  step = compile_step(config)
  assert step.chips == 2 and step.workers_a_row == 1
  rows = {(row.where, row.when) for row in traffic(step)}
  # What workers send, they send on a condition only.
  assert rows >= {(INSIDE, EVERY_STEP), (BETWEEN, ON_CONDITION)}
  assert (BETWEEN, EVERY_STEP) not in rows
  assert not any(row.unread for row in traffic(step))
  # The state is exact but for scalars; parameters, consensus and two moments, of 41,120 values.
  size = sum(size for name, size in step.estimate.items() if name in STATE)
  assert step.memory['state'] == pytest.approx(size, rel=0.02)
  text = compiled_text(step)
  for line in ('sum of the parts', "XLA's plan", 'all-reduce', 'It fits', '2 micro-batches of 4'):
    assert line in text, line


def test_a_compiler_without_the_option_for_tpus_compiles_without_it(cpus, monkeypatch):
  config = config_of(**{'model.remat': 'full', 'model.attention': 'xla'})  # CPUs have no own form.
  without = compile_step(config)
  monkeypatch.setattr(mesh_lib, 'platform', lambda mesh: 'tpu')
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
  assert compile_step(config).collectives == without.collectives
  assert 'no xla_tpu_prefer_async_allgather' in warnings[-1]


def test_what_crosses_is_the_payload_of_the_ledger(cpus):
  step = compile_step(config_of(**{'health.check': False}))
  between = sum(row.sent_bytes for row in traffic(step) if row.where == BETWEEN)
  payload = 3 * 4 * step.parameters / step.chips  # Parameters, mu and nu: each chip its own part.
  assert between == pytest.approx(2 * 3 / 4 * payload, rel=0.01)


def test_syncs_in_few_bytes_are_compiled_as_the_ledger_has_them(cpus):
  options = {'sync.params': 'int8', 'sync.moments': 'int4', 'sync.block': 64}
  step = compile_step(config_of(**options))
  for name, (by_ledger, compiled) in sync_bytes(step).items():
    if name != 'health':  # Twenty bytes, which each device of a worker sends.
      assert compiled == pytest.approx(by_ledger, rel=0.02), name
  assert not sent_bytes(traffic(step), BETWEEN, EVERY_STEP)
  assert 'memory of syncs' in compiled_text(step) and 'bytes by the ledger' in compiled_text(step)
  # The state is in XLA's plan, so is what the syncs remember: three copies more.
  size = sum(v for n, v in step.estimate.items() if n in STATE)
  assert step.memory['state'] == pytest.approx(size, rel=0.02)


def test_ddp_sends_gradients_in_every_step(cpus):
  step = compile_step(config_of(method='ddp'))
  assert 'Every step sends' in compiled_text(step)


def test_workers_that_share_chips_are_all_in_the_estimate(cpus):
  step = compile_step(config_of(workers=16, batch_size=2))
  assert (step.chips, step.workers_a_row) == (1, 2)
  one = compile_step(config_of(workers=8))
  assert step.estimate['moments'] == 2 * one.estimate['moments']
  assert step.estimate['consensus copy'] == one.estimate['consensus copy']


def test_a_micro_batch_that_the_chips_cannot_share_says_what_can(cpus):
  with pytest.raises(UserError, match='batch_size / accumulation is 1, .* accumulation can be 1'):
    compile_step(config_of(accumulation=2))
  with pytest.raises(UserError, match='is 3, .* batch_size can be 4 with accumulation=1'):
    compile_step(config_of(batch_size=3))


@pytest.mark.parametrize(
  ('text', 'name', 'shown'),
  [
    ('v5e:8x8', TopologyName('v5e', '8x8', 1), 'v5e:8x8'),
    ('4x v5e:8x8', TopologyName('v5e', '8x8', 4), '4x v5e:8x8'),
    (' 2 x v5p:4x4x8 ', TopologyName('v5p', '4x4x8', 2), '2x v5p:4x4x8'),
    ('4xv6e:16x16', TopologyName('v6e', '16x16', 4), '4x v6e:16x16'),
  ],
)
def test_names_of_topologies(text, name, shown):
  assert parse_topology(text) == name and str(name) == shown


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('v5e', "topology is 'v5e'; expected CHIP:SHAPE such as 'v5e:8x8'"),
    ('v5e-64', "topology is 'v5e-64'; expected CHIP:SHAPE"),
    ('v5:8x8', "the chip 'v5' is unknown. Did you mean 'v5.'"),
    ('0x v5e:8x8', 'expected 1 to 256 slices'),
  ],
)
def test_a_bad_topology_is_named(text, message):
  with pytest.raises(UserError, match=message):
    check_config(config_of(topology=text))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'topology': ''}, '--mode=compile needs a topology'),
    ({'topology': '3x v5e:2x2'}, 'workers is 4, which the 3 slices .* a worker would span slices'),
  ],
)
def test_workers_and_slices_must_go_together(options, message, cpus):
  with pytest.raises(UserError, match=message):
    compile_step(config_of(batch_size=4, **options))


def test_a_run_goes_on_whatever_it_was_compiled_for():
  assert changed_options(config_of(), flatten(config_of(topology=''))) == {}


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(topology_lib.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='needs libtpu, .* pip install -r requirements-tpu.txt'):
    compile_step(config_of())


def run_compile(*options):
  return subprocess.run(
    [sys.executable, 'run.py', '--config=configs/tiny.py', '--mode=compile', *options],
    cwd=ROOT, capture_output=True, text=True, timeout=600,
    env=environment(JAX_PLATFORMS=''),
  )  # fmt: skip


def test_the_command_refuses_in_one_line():
  result = run_compile('--config.topology=v5:8x8')
  assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
  assert 'Valid: v4, v5e, v5p, v6e.' in result.stderr


@pytest.mark.parametrize(
  ('version', 'told'), [('0.0.42.1', False), ('0.0.52', True), ('0.0.420', True)]
)
def test_another_libtpu_than_that_of_jax_is_told(version, told, monkeypatch, caplog):
  monkeypatch.setattr(topology_lib, 'libtpu_version', lambda: version)
  requires = lambda name: ['libtpu==0.0.42.*; extra == "tpu"']
  monkeypatch.setattr(topology_lib.importlib.metadata, 'requires', requires)
  topology_lib._warn_of_another_libtpu()
  assert ('is made for 0.0.42' in caplog.text) == told


@pytest.mark.skipif(not NO_LIBTPU, reason='libtpu is installed')
def test_the_command_without_libtpu():
  result = run_compile('--config.topology=v5e:2x2')
  assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
  assert 'pip install -r requirements-tpu.txt' in result.stderr


@pytest.mark.skipif(NO_LIBTPU, reason='libtpu is not installed: requirements-tpu.txt')
def test_tiny_for_a_tpu():
  result = run_compile('--config.topology=4x v5e:2x2', '--config.model.vocab_size=512')
  assert result.returncode == 0, result.stderr
  assert result.stderr == ''
  assert 'It fits' in result.stdout and 'between workers' in result.stdout


@pytest.mark.skipif(NO_LIBTPU, reason='libtpu is not installed: requirements-tpu.txt')
def test_a_slice_that_libtpu_does_not_know():
  with pytest.raises(UserError, match=r"'v5e:3x3', which libtpu refuses .* Nearest: 'v5e:2x4'"):
    topology_devices(parse_topology('v5e:3x3'))


def test_the_table_of_pods(cpus):
  step = compile_step(config_of())
  row = pods.row_of('tiny', step)
  assert row['between_every_step_bytes'] == 0 < row['between_on_condition_bytes']
  inside = [row[f'{kind}_bytes'] for kind in ('all_gather', 'reduce_scatter', 'other_inside')]
  sent = sum(r.sent_bytes for r in traffic(step) if r.where == INSIDE and r.when == EVERY_STEP)
  assert sum(inside) == pytest.approx(sent, abs=2)
  assert pods.table([row]).splitlines()[2].split()[:3] == ['tiny', 'v5e:2x4', '2']


@pytest.mark.slow
@pytest.mark.skipif(NO_LIBTPU, reason='libtpu is not installed: requirements-tpu.txt')
@pytest.mark.parametrize('topology', ['v5e:4x4', '2x v5e:4x4'])
def test_tpus_gather_weights_and_scatter_gradients(topology):
  """Also of a vocabulary that is summed in pieces."""
  step = compile_step(
    config_of(topology=topology, batch_size=8, **{'model.vocab_size': 20_480, 'model.width': 128})
  )
  inside = functools.partial(sent_bytes, traffic(step), INSIDE, EVERY_STEP)
  assert inside('all-gather') > 0 and inside('reduce-scatter') > 0
  assert inside() < 1.02 * (inside('all-gather') + inside('reduce-scatter'))
