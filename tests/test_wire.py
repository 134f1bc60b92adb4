"""The slow network inside this machine: bytes on its links against the ledger's."""

import pytest

from experiments.wire.methods import Case, SILENT
from experiments.wire.network import network, why_no_network
from experiments.wire.plot import plot
from experiments.wire.results import bytes_row, PAYLOAD_SHARE, time_rows
from experiments.wire.runs import measure, Phase, Window


def run(case, folder):
  if why_not := why_no_network():
    pytest.skip(f'no network can be made here: {why_not}')
  with network(case.sites) as sites:
    return measure(
      sites, folder / 'run', case.options, case.phases, log_every=case.log_every,
      devices=case.devices,
    )  # fmt: skip


@pytest.mark.slow
def test_ddp_sends_its_gradients_and_cannot_be_faster_than_the_link(tmp_path):
  case = Case('ddp', 2, 16, (Phase(1000, 64), Phase(50, 16)))
  fast, slow = run(case, tmp_path)
  row = bytes_row(case, fast)
  # The counters are read while steps are made: one more or less of 64.
  assert row.measured == pytest.approx(row.ring, rel=0.05)
  assert slow.step_s > 0.95 * row.ring / (50e6 / 8)


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 2])
def test_desloc_sends_what_the_ledger_says(devices, tmp_path):
  """However many devices a worker has: each sends its own part."""
  case = Case('desloc', 2, 32, (Phase(1000, 192),), devices=devices)
  (window,) = run(case, tmp_path)
  row = bytes_row(case, window)
  assert row.ledger_payload == pytest.approx(443_008 * 4 * 1.5 / 32, rel=1e-4)
  assert row.ring <= row.measured < 1.05 * row.ring


@pytest.mark.slow
def test_local_steps_send_nothing_but_heartbeats_and_lines_of_the_log(tmp_path):
  (window,) = run(Case(SILENT, 2, 128, (Phase(1000, 256),)), tmp_path)
  assert window.bytes_per_step < 200  # 0.01% of what DDP sends.


def test_rows_and_plot(tmp_path):
  phases = (Phase(None, 64), Phase(100, 64))
  silent = Case(SILENT, 2, 64, phases, timed=True, batch_size=4)
  ddp = Case('ddp', 2, 64, phases, timed=True, batch_size=4)
  of = lambda *steps: [Window(p, 64 * s, [0, 0]) for p, s in zip(phases, steps, strict=True)]
  # A machine that is half as fast in the second round.
  windows = {silent: [of(0.01, 0.01), of(0.02, 0.02), of(0.01, 0.01)], ddp: [of(0.02, 0.2)]}
  windows[ddp] += [of(0.04, 0.4), of(0.02, 0.1)]
  rows = time_rows(windows)
  assert [row.over_silent for row in rows] == pytest.approx([1, 1, 2, 20])
  assert [(row.least, row.most) for row in rows[2:]] == [
    pytest.approx((2, 2)),
    pytest.approx((10, 20)),
  ]
  assert [row.predicted_s for row in rows[::2]] == [None, None]
  assert rows[1].predicted_s == pytest.approx(0.01)
  # 1,772,032 bytes of gradients, and a ring of two sends each once.
  assert rows[3].predicted_s == pytest.approx(0.01 + 443_008 * 4 / (100e6 / 8 * PAYLOAD_SHARE))
  assert rows[3].tokens_per_s == pytest.approx(2 * 4 * 64 / 0.2)
  assert [row.over_local for row in rows] == [None] * 4
  # Local steps of the run itself are what the planner starts from, and what is compared with.
  local = Case('desloc', 2, 64, phases[1:], timed=True, batch_size=4)
  window = Window(phases[1], 64 * 0.033, [0, 0], local_step_s=0.03)
  (row,) = time_rows(windows | {local: [[window]]})[4:]
  assert (row.over_local, row.over_silent) == pytest.approx((1.1, 3.3))
  per_step = 443_008 * 4 * (1 + 1 / 3 + 1 / 6) / 64
  assert row.predicted_s == pytest.approx(0.03 + per_step / (100e6 / 8 * PAYLOAD_SHARE), rel=1e-4)
  plot(rows, tmp_path / 'wire.png')
  assert (tmp_path / 'wire.png').stat().st_size > 10_000
  assert rows[3].cells()[-2:] == ('20.00x', '10.00-20.00x')
  # While the second round is in progress.
  assert [row.rounds for row in time_rows(windows | {ddp: windows[ddp][:1]})] == [3, 3, 1, 1]
