"""Runs of several processes on this machine: the same numbers, and what happens when one is lost."""

import signal
import socket
import time

import jax
import numpy as np
import pytest

from configs import tiny
from desloc_jax.errors import UserError
from desloc_jax.hosts.ending import PEER_LOST
from desloc_jax.hosts.joined import Joined
from desloc_jax.hosts.joining import join
from desloc_jax.hosts.peers import Peers
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.train import loop
from experiments.scales import changed
from experiments.several import kill, start, wait_for_step
from experiments.systems.faults import trouble
from tests.runs import losses

OPTIONS = {
  'batch_size': 2, 'seq_len': 32, 'steps': 4000, 'model.layers': 1, 'model.width': 32,
  'model.heads': 2, 'periods.params': 3, 'log_every': 5, 'eval.sequences': 8, 'eval.every': 0,
  'data.validation_fraction': 0.2, 'schedule.warmup_steps': 2, 'health.check': False,
}  # fmt: skip


@pytest.fixture(scope='module')
def options(text):
  return OPTIONS | {'data.sources.text.path': text}


def finish(processes, timeout=150):
  """Returns exit codes and what went to stderr, after all have ended."""
  try:
    errors = [process.communicate(timeout=timeout)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()  # What has ended already is not concerned.
  return [process.returncode for process in processes], errors


@pytest.mark.slow
def test_several_processes_compute_what_one_does(options, text, tmp_path):
  """Also where they go on from a checkpoint of one process."""
  short = options | {'steps': 20, 'failures.away': '1:4-8', 'health.check': True}
  one, several = tmp_path / 'one', tmp_path / 'several'
  here = changed(tiny.get_config(), short | {'workers': 4, 'data.sources.text.path': str(text)})
  loop.train(here, one, jax.devices()[:1])
  loop.train(changed(here, {'stop_at': 10}), several, jax.devices()[:1])
  codes, errors = finish(start(4, several, short, 2))
  assert codes == [0, 0], errors
  np.testing.assert_allclose(losses(several), losses(one), rtol=1e-5)
  assert [line['step'] for line in read_metrics(several)] == [0, 5, 10, 15, 20]
  ends = [read_metrics(workdir)[-1] for workdir in (one, several)]
  assert ends[0]['val_loss'] == pytest.approx(ends[1]['val_loss'], rel=1e-5)
  assert ends[0]['bytes_per_worker'] == ends[1]['bytes_per_worker'] > 0


@pytest.mark.slow
def test_steps_that_nothing_waits_for_do_not_fill_the_devices_queues(options, tmp_path):
  """With over 32 programs in flight, processes of several CPU devices each wait for ever."""
  started = start(
    2,
    tmp_path / 'run',
    options | {'steps': 80, 'log_every': 1000, 'periods.params': 1000},
    2,
    devices=2,
  )
  codes, errors = finish(started)
  assert codes == [0, 0], errors
  assert read_metrics(tmp_path / 'run')[-1]['step'] == 80


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 2])
def test_a_process_that_is_killed_is_noticed_by_all_others(victim, options, tmp_path):
  """Also where it is the coordinator."""
  started = start(3, tmp_path / 'run', options, 3)
  wait_for_step(tmp_path / 'run', 10, started)
  started[victim].kill()
  killed = time.monotonic()
  codes, errors = finish(started)
  assert time.monotonic() - killed < 30
  assert codes == [-9 if i == victim else PEER_LOST for i in range(3)], errors
  for text in (text for i, text in enumerate(errors) if i != victim):
    # JAX's own threads may still write of it as the process ends.
    ours = [line for line in text.splitlines() if line.startswith('error: ')]
    assert len(ours) == 1 and 'process' in ours[0] and 'died or hangs' in ours[0], text
    assert 'Traceback' not in text


def wait_for_training(workdir, processes):
  """Waits until a run has logged its beginning, and then for some steps."""
  deadline = time.monotonic() + 100
  while not ((workdir / 'metrics.jsonl').exists() and read_metrics(workdir)):
    if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
      raise RuntimeError(f'it did not begin: {kill(processes)}')
    time.sleep(0.1)
  time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('number', 'receivers', 'code'), [(signal.SIGTERM, [1], 0), (signal.SIGHUP, [0, 1], 129)]
)
def test_a_signal_stops_all_processes_after_the_same_step(
  number, receivers, code, options, tmp_path
):
  """Also where no line of the log is due for long."""
  rare = {'steps': 10**6, 'log_every': 10**6, 'periods.params': 10**6}
  started = start(2, tmp_path / 'run', options | rare, 2)
  wait_for_training(tmp_path / 'run', started)
  for index in receivers:
    started[index].send_signal(number)
  codes, errors = finish(started, timeout=60)
  assert codes == [code] * 2, errors
  lines = [text.strip().splitlines()[-1] for text in errors]
  last = read_metrics(tmp_path / 'run')[-1]['step']
  assert [f'after step {last}, saved' in line for line in lines] == [True, True], lines
  assert (tmp_path / 'run' / 'checkpoints' / str(last)).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize('culprit', [0, 1])
def test_reads_that_hang_in_one_process_end_both(culprit, options, tmp_path, monkeypatch):
  monkeypatch.setenv('TROUBLE', str(tmp_path / 'trouble'))
  limit = {'processes.stuck_timeout_s': 4}
  started = start(2, tmp_path / 'run', options | limit, 2, config=trouble.__file__)
  wait_for_training(tmp_path / 'run', started)
  trouble.tell(tmp_path / 'trouble', 'stuck', culprit)
  codes, errors = finish(started, timeout=60)
  assert codes == [PEER_LOST] * 2, errors
  for text in errors:
    ours = [line for line in text.splitlines() if line.startswith('error: ')]
    assert len(ours) == 1 and 'stuck' in ours[0], text
  for text in (errors[culprit], (tmp_path / 'run' / f'stuck-{culprit}.txt').read_text()):
    assert 'in stuck_inputs' in text and 'in _run_steps' in text


@pytest.mark.parametrize(
  ('membership', 'message'),
  [
    (('localhost', 2, 0), "--coordinator is 'localhost'; expected HOST:PORT"),
    (('localhost:x', 2, 0), 'expected HOST:PORT'),
    (('localhost:0', 2, 0), 'a port from 1 to 65535'),
    (('localhost:65536', 2, 1), 'a port from 1 to 65535'),
    (('::1:1234', 2, 1), 'an address of IPv6 in brackets'),
    (('localhost:1234', 2, 2), 'expected 0 to 1 with --num_processes=2'),
    ((None, 2, 0), '--coordinator, --num_processes and --process_id belong together'),
    (('localhost:1234', 1, None), 'belong together'),
  ],
)
def test_numbers_that_cannot_be_right_are_refused(membership, message):
  with pytest.raises(UserError, match=message):
    join(*membership, 10, 10)


def test_a_port_that_is_taken_is_told():
  """JAX's C++ would end the process by a segmentation fault, without a word."""
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match=f'cannot listen at port {port} .*Address already in use'):
      join(f'127.0.0.1:{port}', 2, 0, 10, 10)


@pytest.mark.parametrize('launcher', ['Slurm', 'Open MPI'])
def test_a_port_that_is_taken_is_told_under_a_launcher(launcher, monkeypatch):
  """JAX takes one of the last 4096 ports by the number of the job."""
  job = 1234
  with socket.create_server(('', 2**16 - 2**12 + job)):
    variables = {
      'Slurm': {
        'SLURM_JOB_ID': job, 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_STEP_NUM_TASKS': 2,
        'SLURM_NTASKS': 2, 'SLURM_PROCID': 0, 'SLURM_LOCALID': 0,
      },
      'Open MPI': {
        'OMPI_MCA_orte_hnp_uri': f'{job * 2**12}.0;tcp://127.0.0.1:34911',
        'OMPI_COMM_WORLD_SIZE': 2, 'OMPI_COMM_WORLD_RANK': 0, 'OMPI_COMM_WORLD_LOCAL_RANK': 0,
      },
    }  # fmt: skip
    for name, value in variables[launcher].items():
      monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match='cannot listen at port 62674 .* JAX_COORDINATOR_PORT'):
      join(None, None, None, 10, 10)


def test_what_a_lost_process_causes_is_told_from_other_errors():
  lost_by = Joined(2, 0).lost_by
  lost = ValueError('UNKNOWN: Gloo all-reduce failed: Connection closed by peer')
  wrapped = RuntimeError('orbax failed')
  wrapped.__cause__ = lost
  assert lost_by(lost) and lost_by(wrapped) and not Peers().lost_by(lost)
  assert not lost_by(ValueError('RESOURCE_EXHAUSTED: no space')) and not lost_by(None)
