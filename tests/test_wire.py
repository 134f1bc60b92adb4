"""The slow network inside this machine: bytes on its links against the ledger's."""

import dataclasses
import functools
import subprocess
import sys

import numpy as np
import pytest

from desloc_jax.errors import UserError
from experiments.overhead import CYCLE, Turn
from experiments.wire import checks
from experiments.wire.__main__ import parse
from experiments.wire.methods import Case, SILENT
from experiments.wire.network import network, why_no_network
from experiments.wire.plot import plot
from experiments.wire.results import bytes_rows, overhead_rows, PAYLOAD_SHARE, time_rows
from experiments.wire.runs import measure, measure_overhead, Phase, Window


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
    ('--batch_size=0', '--batch_size is 0; expected at least 1'),
    ('--starts=0', '--starts is 0; expected at least 1'),
    ('--sites=1', '--sites is 1; expected at least 2'),
    ('--rates=0', '--rates is 0.0; expected more than 0'),
  ],
)
def test_numbers_that_cannot_be_measured_are_refused(option, message):
  with pytest.raises(UserError, match=message):
    parse([option])


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
  step_s, silent_step_s = np.mean([dataclasses.astuple(turn) for turn in turns], 0)
  ledger = case.ledger()
  sent_s = ledger.ring_bytes(ledger.bytes_per_step) / (20e6 / 8)
  assert 0.9 * sent_s < step_s - silent_step_s < 1.5 * sent_s


@pytest.mark.slow
def test_the_next_network_removes_what_a_killed_process_left():
  if why_not := why_no_network():
    pytest.skip(f'no network can be made here: {why_not}')
  # It kills itself with its network up, and a process at a site.
  code = """
import os, subprocess
from experiments.wire.network import network
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


def test_rows_and_plot_of_the_time(tmp_path):
  phases = (Phase(None, 64), Phase(100, 64))
  timed = functools.partial(Case, sites=2, period=64, part='time', batch_size=4)
  of = lambda phases, *steps: [
    Window(p, 64 * s, [0, 0]) for p, s in zip(phases, steps, strict=True)
  ]
  rows = time_rows(
    {
      timed(SILENT, phases=phases): [of(phases, 0.01, 0.01)],
      timed('ddp', phases=phases): [of(phases, 0.02, 0.2)],
      # Local steps of the run itself are what the planner starts from, and what is compared with.
      timed('desloc', phases=phases[1:]): [[Window(phases[1], 64 * 0.033, [0, 0], 0.03)]],
      timed('local_adam', phases=phases[1:]): [[Window(phases[1], 64 * 0.4, [0, 0], 0.03)]],
    }
  )
  assert [row.over_silent for row in rows] == pytest.approx([1, 1, 2, 20, 3.3, 40])
  assert [row.over_local for row in rows[:5]] == [None] * 4 + [pytest.approx(1.1)]
  assert [row.predicted_s for row in rows[:4:2]] == [None, None]
  assert rows[1].predicted_s == pytest.approx(0.01)
  # 1,772,032 bytes of gradients, and a ring of two sends each once.
  gradients_s = 443_008 * 4 / (100e6 / 8 * PAYLOAD_SHARE)
  assert rows[3].predicted_s == pytest.approx(0.01 + gradients_s)
  assert rows[3].tokens_per_s == pytest.approx(2 * 4 * 64 / 0.2)
  assert rows[4].predicted_s == pytest.approx(0.03 + 1.5 * gradients_s / 64, rel=1e-4)
  # DES-LOC sends for a tenth of its step: that says nothing about the link.
  assert [row.cells()[-1] for row in rows] == ['-', '-', '-', '78%', '-', '2%']
  assert rows[3].link_used == pytest.approx(gradients_s / 0.19)
  plot(rows, tmp_path / 'wire.png')
  assert (tmp_path / 'wire.png').stat().st_size > 10_000


def test_rows_and_checks_of_the_overhead():
  case = Case('desloc', 2, 256, (Phase(100, 64),), 'overhead')
  # A machine that is half as fast at the second start.
  rows = overhead_rows({case: [[Turn(0.0103, 0.01)], [Turn(0.0208, 0.02)]]})
  assert [(row.start, row.turn) for row in rows] == [(1, 1), (2, 1)]
  assert [row.cells()[-2:] for row in rows] == [('10.0 ms', '+3.0%'), ('20.0 ms', '+4.0%')]
  as_read = [dataclasses.asdict(row) for row in rows]
  ddp = dict(method='ddp', processes=2, megabits=100, step_s=1, predicted_s=0.95, over_silent=9)
  time = [ddp | {'link_used': 0.9}, ddp | {'link_used': '', 'megabits': 10}]
  planned, used, slow, over_silent = checks.checks(time, as_read)
  assert (planned.verdict, used.verdict, used.values) == ('holds', 'holds', [90])
  assert (slow.values, slow.verdict) == ([9], 'holds')
  assert over_silent.values == pytest.approx([3, 4])
  assert over_silent.verdict == 'open'  # Two turns do not say that it is under 5%.


def test_checks_of_a_bad_wire_fail_and_those_of_nothing_are_left_out():
  row = {'method': 'favg_opt', 'processes': 2, 'megabits': 10, 'step_s': 1.2, 'over_silent': 9}
  planned, used = checks.checks([row | {'predicted_s': 1, 'link_used': 0.8}], [])
  assert (planned.verdict, used.verdict) == ('does not hold', 'does not hold')
  assert len(checks.checks([row | {'predicted_s': 1, 'link_used': ''}], [])) == 1
  overhead = {'processes': 2, 'megabits': 10, 'K_x': 256, 'step_s': 1.2}
  turns = [overhead | {'silent_step_s': silent_s} for silent_s in (1.0, 1.001, 1.002)]
  _, over_silent = checks.checks([row | {'predicted_s': 1, 'link_used': ''}], turns)
  assert over_silent.verdict == 'does not hold'
