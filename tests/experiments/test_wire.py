"""The slow network inside this machine: bytes on its links against the ledger's."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from experiments.several import kill, start, wait_for_step
from experiments.systems import changing_links
from experiments.systems.overhead import CYCLE
from experiments.systems.wire.__main__ import parse
from experiments.systems.wire.changing_rate import measure, measure_overhead, Phase
from experiments.systems.wire.compared import Case, SILENT
from experiments.systems.wire.network import network, why_no_network
from experiments.systems.wire.results import bytes_rows
from tests.runs import newest_leaves


def run(case, folder):
  if why_not := why_no_network():
    pytest.skip(f'no network can be made here: {why_not}')
  with network(case.sites) as sites:
    return measure(
      sites, folder / 'run', case.options, case.phases, log_every=case.log_every,
      devices=case.devices,
    )  # fmt: skip


@pytest.mark.parametrize(
  ('option', 'message'),
  [
    ('--batch_size=0', '--batch_size is 0; expected a whole number >= 1'),
    ('--starts=0', '--starts is 0; expected a whole number >= 1'),
    ('--sites=1', '--sites is 1; expected a whole number from 2 to 250'),
    ('--sites=251', '--sites is 251; expected a whole number from 2 to 250'),
    ('--rates=0', '--rates is 0; expected more than 0'),
    ('--rates=nan', '--rates is nan; expected more than 0'),
  ],
)
def test_numbers_that_cannot_be_measured_are_refused(option, message):
  with pytest.raises(UserError, match=message):
    parse([option])


def test_links_that_change_are_of_so_many_sites():
  with pytest.raises(UserError, match='--sites is 1; expected a whole number from 2 to 250'):
    changing_links.parse(['--sites=1'])
  with pytest.raises(UserError, match='--steps is 10; expected a whole number >= 80'):
    changing_links.parse(['--steps=10'])


@pytest.mark.slow
def test_ddp_sends_its_gradients_and_cannot_be_faster_than_the_link(tmp_path):
  case = Case('ddp', 2, 16, (Phase(1000, 64), Phase(50, 16)))
  fast, slow = run(case, tmp_path)
  (row,) = bytes_rows({case: [[fast]]})
  # The counters are read while steps are made: one more or less of 64.
  assert row.measured == pytest.approx(row.ring, rel=0.05)
  assert slow.step_s > 0.95 * row.ring / (50e6 / 8)


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 2])
def test_desloc_sends_what_the_ledger_says(devices, tmp_path):
  """However many devices a worker has: each sends its own part."""
  case = Case('desloc', 2, 16, (Phase(1000, 96),), devices=devices)
  (window,) = run(case, tmp_path)
  (row,) = bytes_rows({case: [[window]]})
  assert row.ledger_payload == pytest.approx(443_008 * 4 * 1.5 / 16, rel=1e-4)
  assert row.ring <= row.measured < 1.05 * row.ring


@pytest.mark.slow
def test_local_steps_send_nothing_but_heartbeats_and_lines_of_the_log(tmp_path):
  (window,) = run(Case(SILENT, 2, 64, (Phase(1000, 128),)), tmp_path)
  assert window.bytes_per_step < 200  # 0.01% of what DDP sends.


@pytest.mark.slow
def test_the_overhead_is_the_time_of_the_averages_on_the_link(tmp_path):
  if why_not := why_no_network():
    pytest.skip(f'no network can be made here: {why_not}')
  case = Case('desloc', 2, 16, (), 'overhead')
  with network(2) as sites:
    turns = measure_overhead(sites, tmp_path / 'run', case.options, megabits=20)
  assert len(turns) == CYCLE
  step_s, _, local_step_s = np.mean([dataclasses.astuple(turn) for turn in turns], 0)
  ledger = case.ledger()
  sent_s = ledger.ring_bytes(ledger.bytes_per_step) / (20e6 / 8)
  assert 0.9 * sent_s < step_s - local_step_s < 1.5 * sent_s


@pytest.mark.slow
def test_links_that_change_while_syncs_are_on_their_way_change_no_bit(tmp_path):
  """Links slow down to where steps wait, one alone, and recover: waits are reported, and that is all."""
  if why_not := why_no_network():
    pytest.skip(f'no network can be made here: {why_not}')
  options = {
    'batch_size': 1, 'seq_len': 16, 'steps': 96, 'log_every': 16, 'periods.params': 16, 'sync.delay': 8,
    'sync.behind': True, 'health.check': False, 'eval.every': 0, 'eval.sequences': 8,
    'checkpoint.every': 0, 'schedule.warmup_steps': 2,
  }  # fmt: skip
  lines, ends = [], []
  for changing in (True, False):
    workdir = tmp_path / f'changing {changing}'
    with network(2) as sites:
      sites.throttle(1000, whole=True)
      before = [sites.inside(site) for site in range(2)]
      started = start(2, workdir, options, 2, host=sites.address(0), before=before)
      try:
        if changing:
          wait_for_step(workdir, 16, started)
          sites.throttle(4, sites=[1], whole=True)
          wait_for_step(workdir, 48, started)
          sites.throttle(1000, whole=True)
        codes = [process.wait(timeout=120) for process in started]
      finally:
        printed = kill(started)
    assert codes == [0, 0], printed
    lines.append([line for line in read_metrics(workdir) if 'loss' in line])
    ends.append(newest_leaves(workdir))
  for name, value in ends[0].items():
    np.testing.assert_array_equal(value, ends[1][name], err_msg=name)
  assert [line['losses'] for line in lines[0]] == [line['losses'] for line in lines[1]]
  waited = [sum(line['sync_wait_ms'] for line in each) for each in lines]
  # 1,772,032 bytes take 3.5 s at 4 Mbit/s, and eight steps of a busy machine less than a second.
  assert waited[0] > 1000 > 2 * waited[1]


@pytest.mark.slow
def test_the_next_network_removes_what_a_killed_process_left():
  if why_not := why_no_network():
    pytest.skip(f'no network can be made here: {why_not}')
  # It kills itself with its network up, and a process at a site.
  code = """
import os, subprocess
from experiments.systems.wire.network import network
with network(2) as sites:
  subprocess.Popen([*sites.inside(1), 'sleep', '600'])
  os.kill(os.getpid(), 9)
"""
  killed = subprocess.Popen([sys.executable, '-c', code])
  killed.wait(timeout=60)
  left = [f'desloc{killed.pid}-{site}' for site in range(2)]
  listed = lambda command: subprocess.run(['ip', *command], capture_output=True, text=True).stdout
  assert all(name in listed(['netns']) for name in left)
  with network(1):
    assert not any(name in listed(['netns']) for name in left)
    assert f'desloc{killed.pid}' not in listed(['link'])
