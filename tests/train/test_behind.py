"""Two processes whose syncs are behind their steps: the same bits, also after kill -9 in flight."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from desloc_jax.checkpoints.leaves import LeafReader
from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.logs.metrics import read_metrics
from experiments.several import free_port, kill, start, wait_for_step
from tests.environment import environment

OPTIONS = {
  'batch_size': 1, 'seq_len': 16, 'steps': 46, 'model.layers': 1, 'model.width': 16,
  'model.heads': 1, 'periods.params': 8, 'log_every': 3, 'eval.sequences': 8, 'eval.every': 7,
  'data.validation_fraction': 0.2, 'schedule.warmup_steps': 2, 'health.check': False,
  'sync.delay': 5, 'sync.params': 'int8', 'checkpoint.every': 10,
}  # fmt: skip
BEHIND = {'sync.behind': True}


def train(workdir, options, text):
  started = start(2, workdir, OPTIONS | {'data.sources.text.path': text} | options, 2)
  errors = [process.communicate(timeout=200)[1] for process in started]
  assert [process.returncode for process in started] == [0, 0], errors


def leaves(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of the newest checkpoint."""
  checkpoints = Checkpoints(workdir / 'checkpoints', keep=1)
  step = max(checkpoints.steps())
  found = checkpoints.leaves(step)
  checkpoints.close()
  reader = LeafReader(workdir / 'checkpoints' / str(step) / 'state')
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
  return {name: np.asarray(reader.read(name, like(leaf))) for name, leaf in found.items()}


@pytest.mark.slow
def test_syncs_behind_have_the_bits_of_those_inside(text, tmp_path, monkeypatch):
  """Killed at a step after which a sync is in flight, and gone on from a checkpoint with one."""
  monkeypatch.setenv('XLA_FLAGS', '')  # As users compile; what is optimised less rounds otherwise.
  inside, behind = tmp_path / 'inside', tmp_path / 'behind'
  train(inside, {}, text)
  killed = OPTIONS | BEHIND | {'data.sources.text.path': text}
  started = start(2, behind, killed, 2)
  wait_for_step(behind, 24, started)
  kill(started)
  train(behind, BEHIND, text)
  ends = leaves(inside), leaves(behind)
  assert ends[0].keys() == ends[1].keys()
  for name, value in ends[0].items():
    np.testing.assert_array_equal(value, ends[1][name], err_msg=name)
  lines = [line for line in read_metrics(behind) if 'loss' in line]
  assert all(line['sync_wait_ms'] >= 0 for line in lines)
  assert [line['loss'] for line in lines] == [
    x['loss'] for x in read_metrics(inside) if 'loss' in x
  ]


AT_ONCE = """
import sys
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
