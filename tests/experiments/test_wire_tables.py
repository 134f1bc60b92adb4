"""Tables of the wire: their rows, what is to hold of them, and what a new measurement replaces."""

import dataclasses
import functools
import math

import pytest

from desloc_jax.errors import UserError
from experiments.systems.overhead import Turn
from experiments.systems.wire import claims, table_files
from experiments.systems.wire.__main__ import cases_of, parse
from experiments.systems.wire.changing_rate import Phase, Window
from experiments.systems.wire.compared import Case, HIDDEN, PARTS, SILENT
from experiments.systems.wire.figures import plot
from experiments.systems.wire.link_use import link_rows, plot as plot_link
from experiments.systems.wire.results import (
  BytesRow,
  overhead_rows,
  OverheadRow,
  PAYLOAD_SHARE,
  time_rows,
  TimeRow,
)


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


POINT = TimeRow(
  processes=2, method='ddp', K_x=64, megabits=100, steps=24, step_s=1, tokens_per_s=768,
  predicted_s=0.95, over_local=None, over_silent=9, link_used=0.9,
)  # fmt: skip
TURN = OverheadRow(2, 'desloc', 256, 100, 1, 1, step_s=1.2, waiting_s=0.1, local_step_s=1.0)


def test_rows_and_checks_of_the_overhead():
  desloc = Case('desloc', 2, 256, (Phase(100, 64),), 'overhead')
  ddp = dataclasses.replace(desloc, method='ddp', period=1)
  # A machine that is half as fast at the second start.
  turns = [[Turn(0.0103, 0.0001, 0.01)], [Turn(0.0210, 0, 0.02), Turn(0.0206, 0, 0.02)]]
  rows = overhead_rows({desloc: turns, ddp: [[Turn(0.09, 0, 0.01)], [Turn(0.14, 0, 0.02)]]})
  assert [(row.start, row.turn) for row in rows[:3]] == [(1, 1), (2, 1), (2, 2)]
  assert rows[0].cells()[-4:] == ('10.3 ms', '10.0 ms', '+3.0%', '1.0%')
  time = [POINT, dataclasses.replace(POINT, megabits=10, link_used=None)]
  planned, used, slow, longer = claims.checks(time, rows)
  assert (planned.verdict, used.verdict, used.values) == ('holds', 'holds', [90])
  assert slow.values == pytest.approx([9, 7])
  # A value a start, as its turns are not independent.
  assert longer.values == pytest.approx([3, 4])
  assert longer.verdict == 'open'  # Two do not say that it is under 5%.


def test_checks_of_a_bad_wire_fail_and_those_of_nothing_are_left_out():
  bad = dataclasses.replace(POINT, method='favg_opt', step_s=1.2, link_used=0.8)
  planned, used = claims.checks([bad], [])
  assert (planned.verdict, used.verdict) == ('does not hold', 'does not hold')
  assert len(claims.checks([dataclasses.replace(bad, link_used=None)], [])) == 1
  # Neither the run without communication nor a link without a limit is the planner's to foresee.
  silent = dataclasses.replace(bad, method=SILENT)
  assert (
    claims.checks([silent, dataclasses.replace(bad, predicted_s=None, link_used=None)], []) == []
  )
  turns = [
    dataclasses.replace(TURN, start=start, local_step_s=local_s)
    for start, local_s in enumerate((1.0, 1.001, 1.002))
  ]
  (longer,) = claims.checks([], turns)
  assert longer.verdict == 'does not hold'


def test_what_is_measured_anew_replaces_rows_of_as_many_processes(tmp_path):
  assert table_files.read('time', tmp_path) == []
  old = [POINT, dataclasses.replace(POINT, megabits=None, predicted_s=None)]
  four = dataclasses.replace(POINT, processes=4, over_local=1.1)
  assert table_files.update('time', [*old, four], tmp_path) == [*old, four]
  new = dataclasses.replace(POINT, method='desloc', step_s=0.123456789012)
  three = dataclasses.replace(POINT, processes=3)
  table_files.update('time', [three, new], tmp_path)
  assert table_files.read('time', tmp_path) == [new, three, four]


def test_bytes_measured_anew_replace_those_of_the_same_method(tmp_path):
  ddp, int8, int4 = (BytesRow(2, name, 4, 432, 1.0, 1.0, 1.0) for name in ('ddp', 'int8', 'int4'))
  table_files.update('bytes', [ddp, int8], tmp_path)
  anew = dataclasses.replace(int8, measured=1.01)
  assert table_files.update('bytes', [anew, int4], tmp_path) == [ddp, anew, int4]


def test_syncs_in_few_bytes_are_cases_of_the_bytes_alone():
  options = parse(['--methods', 'desloc+int8', 'favg_opt+topk', '--only', 'bytes', 'time'])
  (int8, topk), times = ([*cases_of(part, 2, options)] for part in PARTS[:2])
  assert [case.method for case in times] == [SILENT]
  # 443,008 parameters and two moments, in blocks of 256: int8 is a quarter, and the scales.
  plain = Case('desloc', 2, 4, ()).ledger().ring_bytes_per_step
  assert int8.ledger().ring_bytes_per_step / plain == pytest.approx(0.25 * 260 / 256, rel=0.01)
  # 128 bytes for each 4,096 parameters at width 512 (embedding, blocks, norms); the worker's weight.
  parameters = 384 * 512 + 2 * 12 * 512**2 + 5 * 512
  assert topk.ledger().bytes_per_sync['params'] == math.ceil(parameters / 4096) * 128 + 4


@pytest.mark.parametrize('part', table_files.KINDS)
def test_the_committed_tables_are_read(part):
  rows = table_files.read(part)
  # Four processes have not been measured with syncs behind the steps.
  assert {row.processes for row in rows} == ({2} if part in ('behind', 'link') else {2, 4})
  assert {type(row) for row in rows} == {table_files.KINDS[part]}


def test_syncs_behind_are_measured_beside_those_that_are_waited_for():
  options = parse(['--only=behind', '--rates', '100', '10', '--periods', '64'])
  cases = list(cases_of('behind', 2, options))
  assert [(case.method, case.megabits) for case in cases] == [
    (method, rate) for rate in (100, 10) for method in ('desloc', *HIDDEN)
  ]
  blocking, behind, int8 = (case.options for case in cases[:3])
  assert 'sync.delay' not in blocking and behind['sync.delay'] == 52
  assert (behind['sync.behind'], behind.get('sync.params')) == (True, None)
  assert int8['sync.params'] == int8['sync.moments'] == 'int8'


def test_one_check_a_place_says_whether_syncs_are_hidden(tmp_path):
  hidden = dataclasses.replace(TURN, method='desloc behind', K_x=64, step_s=1.005, waiting_s=0.0)
  slow = dataclasses.replace(hidden, step_s=1.2, megabits=1000)
  found = claims.checks([], [], [hidden, hidden, slow, dataclasses.replace(TURN, K_x=64)])
  assert [check.verdict for check in found] == ['holds']  # At 1000 Mbit/s there is no goal.
  table_files.update('behind', [hidden, slow], tmp_path)
  again = dataclasses.replace(slow, step_s=1.3)
  assert table_files.update('behind', [again], tmp_path) == [hidden, again]


def test_the_use_of_a_link_ends_with_what_was_sent_last(tmp_path):
  samples = [(0.0, 0), (1.0, 12_500_000), (2.0, 12_500_000), (3.0, 25_000_000), (4.0, 25_000_100)]
  rows = link_rows(2, 'desloc behind', 64, 100, samples)
  assert [(row.second, row.used_megabits) for row in rows] == [(6, 100), (7, 0), (8, 100)]
  assert link_rows(2, 'desloc', 64, 100, samples[:1]) == []
  plot_link(rows, tmp_path / 'wire_link.png')
  assert (tmp_path / 'wire_link.png').stat().st_size > 10_000


COLUMNS = 'processes,method,K_x,steps,ledger_payload,ring,measured'


@pytest.mark.parametrize(
  'content',
  ['a,b\n1,2\n', f'{COLUMNS}\ntwo,ddp,1,1,1,1,1\n', f'{COLUMNS}\n2,ddp,1,1,1,1\n',
   f'{COLUMNS}\n2,ddp,1,1,1,1,\n'],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused(content, tmp_path):
  (tmp_path / 'wire_bytes.csv').write_text(content)
  with pytest.raises(
    UserError, match='wire_bytes.csv is not a table of bytes .* processes, method'
  ):
    table_files.update('bytes', [BytesRow(2, 'ddp', 256, 512, 1.0, 1.0, 1.0)], tmp_path)
  assert (tmp_path / 'wire_bytes.csv').read_text() == content
