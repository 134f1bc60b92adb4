"""Faults in real processes: what goes on, what is lost, and what the command line says."""

import random

import numpy as np
import pytest
import tensorstore

from desloc_jax.checkpoints.store import one_line_error
from desloc_jax.errors import UserError
from desloc_jax.logs.workdir import CHECKPOINTS
from experiments.systems.faults import (
  campaign,
  command_runs,
  disks,
  injectors as faults,
  processes,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
  folder = tmp_path_factory.mktemp('faults')
  # Without the health check a step compiles in half the time.
  options = {'steps': 60, 'health.check': False}
  bench = command_runs.Bench(folder, folder / 'cache', **options)
  assert sorted(bench.reference[0]) == list(range(61))
  return bench


@pytest.fixture(scope='module')
def disk(tmp_path_factory):
  """An empty folder on a disk of its own."""
  if why_not := disks.why_no_mounts():
    pytest.skip(f'nothing can be mounted here: {why_not}')
  folder = tmp_path_factory.mktemp('disks') / 'disk'
  with disks.small_disk(folder):
    yield folder


def check(injections, *expected):
  assert [x.fault for x in injections] == list(expected)
  assert [x.problem for x in injections] == [''] * len(expected)
  assert all(x.identical for x in injections)


def test_a_run_killed_again_and_again_is_the_same_run(bench):
  rng = random.Random(1)
  workdir = bench.folder / 'killed'
  injections = campaign.inject(bench, workdir, [faults.kill] * 3, rng, **{'checkpoint.keep': 1})
  assert injections
  check(injections, *(x.fault for x in injections))
  assert all(x.fault.startswith('kill -9 ') for x in injections)
  # A save may take longer than the five steps to the next.
  assert all(x.lost <= 15 for x in injections)


def test_what_compressed_syncs_remember_survives_kills_around_them(bench):
  compressed = bench.beside('compressed', **command_runs.COMPRESSED)
  injectors = [faults.kill_around_sync] * 2
  injections = campaign.inject(compressed, compressed.folder / 'run', injectors, random.Random(0))
  check(injections, *['kill -9 around a compressed sync'] * 2)
  memory = [x for name, x in compressed.reference[1].items() if 'memory.own.params' in name]
  assert memory and any(np.abs(x).max() > 0 for x in memory)


def test_signals_and_damaged_files(bench):
  flip = faults.damage(faults.flip_bit)
  injectors = [processes.terminate, flip, processes.terminate_twice]
  injections = campaign.inject(bench, bench.folder / 'signals', injectors, random.Random(0))
  check(injections, 'SIGTERM', 'flipped bit in the newest checkpoint', 'SIGTERM twice')
  assert injections[0].lost == 0
  names = {path.name for path in (bench.folder / 'signals' / CHECKPOINTS).iterdir()}
  assert '60' in names and sum(name.startswith('damaged-') for name in names) == 1


def test_a_hangup_and_reads_that_hang(bench):
  injectors = [processes.hang_up, processes.get_stuck]
  options = {'processes.stuck_timeout_s': 3}
  folder = bench.folder / 'stuck'
  injections = campaign.inject(bench, folder, injectors, random.Random(0), **options)
  check(injections, 'SIGHUP', 'stuck process')
  assert injections[0].lost == 0 and 'stuck_inputs' in (folder / 'stuck-0.txt').read_text()


def test_a_full_disk_and_a_read_only_folder(bench, disk):
  injectors = [faults.fill_disk, faults.make_read_only]
  injections = campaign.inject(bench, disk, injectors, random.Random(0))
  check(injections, 'full disk', 'read-only folder')


@pytest.mark.parametrize('transactional', [False, True])
def test_the_system_s_reason_is_told_whatever_the_length_of_the_path(tmp_path, transactional):
  if why_not := disks.why_no_mounts():
    pytest.skip(f'nothing can be mounted here: {why_not}')
  folder = tmp_path / ('long' * 50) / ('longer' * 30)
  folder.mkdir(parents=True)
  with disks.read_only(folder), pytest.raises(UserError) as raised:
    with one_line_error('cannot be saved', tmp_path):
      store = tensorstore.KvStore.open(f'file://{folder}/').result()
      if transactional:
        with tensorstore.Transaction() as transaction:
          store.with_transaction(transaction)['name'] = b'x'
      else:
        store.write('name', b'x').result()
  assert ' cannot be saved: Read-only file system. What' in str(raised.value)


def test_a_difference_from_the_reference_is_seen(bench):
  """The comparison itself: a bit of a loss, a bit of an array, a step that is missing."""
  workdir = bench.folder / 'reference'
  metrics = workdir / 'metrics.jsonl'
  assert bench.same_lines(workdir) and bench.same_end(workdir)
  text = metrics.read_text()
  metrics.write_text(text.replace('"loss": 3.', '"loss": 4.', 1))
  assert not bench.same_lines(workdir)
  metrics.write_text(''.join(text.splitlines(keepends=True)[:-1]))
  assert bench.same_lines(workdir) and not bench.same_end(workdir)
  metrics.write_text(text)
  arrays = bench.reference[1]
  name = next(name for name in arrays if name.endswith('embedding'))
  whole, arrays[name] = arrays[name], arrays[name].copy()
  assert bench.same_end(workdir)
  arrays[name].view('uint8').flat[-1] ^= 1
  assert not bench.same_end(workdir)
  arrays[name] = whole


def test_the_table_counts(tmp_path):
  good = faults.Injection('kill -9 in a save', '', done=9, expected=5, resumed=5, identical=True)
  bad = faults.Injection('kill -9 in a save', '', done=12, expected=10, problem='it ended')
  text = campaign.table([good, bad])
  assert text.splitlines()[-1].split()[-5:] == ['2', '1', '4.0', '4', '1']
  campaign.write_rows([good, bad], tmp_path / 'faults.csv')
  assert len((tmp_path / 'faults.csv').read_text().splitlines()) == 3


def test_only_the_damage_asked_for_is_done(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(bytes(10))
  faults.flip_bit(path)
  assert path.stat().st_size == 10 and sum(path.read_bytes()) == 4
  faults.truncate(path)
  assert path.stat().st_size == 5
