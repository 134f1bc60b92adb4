"""Two processes whose syncs are behind their steps: the same bits, also after ends in flight."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from desloc_jax.hosts.ending import PEER_LOST
from desloc_jax.logs.metrics import read_metrics
from experiments.several import free_port, last_step, start, wait_for_step
from experiments.systems.faults import trouble
from tests.environment import environment
from tests.runs import newest_leaves

OPTIONS = {
  'batch_size': 1, 'seq_len': 16, 'steps': 10**5, 'model.layers': 1, 'model.width': 16,
  'model.heads': 1, 'periods.params': 8, 'log_every': 50, 'eval.sequences': 8, 'eval.every': 70,
  'data.validation_fraction': 0.2, 'schedule.warmup_steps': 2, 'health.check': False,
  'sync.delay': 5, 'sync.params': 'int8', 'checkpoint.every': 50,
}  # fmt: skip
BEHIND = {'sync.behind': True}


def begin(workdir, options):
  return start(2, workdir, OPTIONS | options, 2, config=trouble.__file__)


def end(processes):
  """Returns exit codes and what went to stderr, after both have ended."""
  try:
    errors = [process.communicate(timeout=100)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()  # What has ended already is not concerned.
  return [process.returncode for process in processes], errors


@pytest.mark.slow
def test_syncs_behind_have_the_bits_of_those_inside(text, tmp_path, monkeypatch):
  """Also after an end of one process that leaves a sync of the other in flight, and a stop in flight."""
  monkeypatch.setenv('XLA_FLAGS', '')  # As users compile; what is optimised less rounds otherwise.
  monkeypatch.setenv('TROUBLE', str(tmp_path / 'trouble'))
  options = {'data.sources.text.path': text}
  inside, behind = tmp_path / 'inside', tmp_path / 'behind'

  started = begin(behind, options | BEHIND)
  wait_for_step(behind, 100, started)
  # The other one sends once more, to one that stands still, and waits for it to land.
  trouble.tell(tmp_path / 'trouble', 'stuck', 1)
  wait_until_it_stands(behind)
  assert [process.poll() for process in started] == [None, None]
  started[1].kill()
  codes, errors = end(started)
  assert codes == [PEER_LOST, -signal.SIGKILL], errors
  assert 'died or hangs' in errors[0] and 'Traceback' not in errors[0]

  (tmp_path / 'trouble').unlink()
  reached = last_step(behind)
  started = begin(behind, options | BEHIND)
  wait_for_step(behind, reached + 100, started)
  started[1].send_signal(signal.SIGTERM)
  codes, errors = end(started)
  assert codes == [0, 0], errors
  stopped = last_step(behind)

  codes, errors = end(begin(inside, options | {'stop_at': stopped}))
  assert codes == [0, 0], errors
  assert_same_ends(inside, behind)
  lines = [line for line in read_metrics(behind) if 'loss' in line]
  assert all(line['sync_wait_ms'] >= 0 for line in lines)
  expected = {line['step']: line['loss'] for line in read_metrics(inside) if 'loss' in line}
  assert {line['step']: line['loss'] for line in lines} == expected


def assert_same_ends(inside, behind):
  ends = newest_leaves(inside), newest_leaves(behind)
  assert ends[0].keys() == ends[1].keys()
  for name, value in ends[0].items():
    np.testing.assert_array_equal(value, ends[1][name], err_msg=name)


@pytest.mark.slow
def test_fragments_behind_have_the_bits_of_those_inside(text, tmp_path, monkeypatch):
  """With parts that share a place in flight, and one on its way in the checkpoint."""
  monkeypatch.setenv('XLA_FLAGS', '')
  options = {'data.sources.text.path': text, 'sync.fragments': 2, 'sync.delay': 3, 'stop_at': 42}
  for name, own in (('inside', {}), ('behind', BEHIND)):
    codes, errors = end(begin(tmp_path / name, options | {'checkpoint.every': 0} | own))
    assert codes == [0, 0], errors
  assert_same_ends(tmp_path / 'inside', tmp_path / 'behind')


def wait_until_it_stands(workdir):
  """Waits until a run writes no more lines."""
  before = -1
  while before < (before := last_step(workdir)):
    time.sleep(1)


AT_ONCE = """
import os, sys
if hasattr(os, 'sched_setaffinity'):  # With the fewest threads.
  os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from desloc_jax.hosts import aside
from desloc_jax.hosts.joining import join
from desloc_jax.hosts.peers import peers
join(sys.argv[1], 2, int(sys.argv[2]), 60, 60, sets_aside=True)
assert len(aside.step_devices()) == 2 and len(jax.devices()) == 4
assert not set(aside.step_devices()) & set(aside.exchange_devices())
mesh = Mesh(np.array(aside.exchange_devices()), ('workers',))
rows, whole = NamedSharding(mesh, P('workers')), NamedSharding(mesh, P())
total = jax.jit(lambda x: x.sum(axis=0), out_shardings=whole)
for size in (10, 2_000_000):
  mine = np.full((1, size), peers().index + 1.0, np.float32)
  x = jax.make_array_from_process_local_data(rows, mine, (2, size))
  on_its_way = [total(x * n) for n in range(1, 9)]
  for n in range(40):
    assert peers().gather([n, peers().index]) == [[n, 0], [n, 1]]
  for n, y in enumerate(on_its_way, 1):
    assert (np.asarray(y.addressable_data(0)) == 3.0 * n).all()
peers().wait_for_all()
print('all right')
"""


@pytest.mark.slow
def test_what_processes_tell_each_other_never_meets_an_exchange():
  address = f'127.0.0.1:{free_port()}'
  command = [sys.executable, '-c', AT_ONCE, address]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  started = [
    subprocess.Popen([*command, str(index)], env=environment(), **pipes) for index in range(2)
  ]
  outputs = [process.communicate(timeout=120) for process in started]
  assert all('all right' in out for out, _ in outputs), outputs
