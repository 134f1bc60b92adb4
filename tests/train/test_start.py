"""Processes that do not belong together, or cannot begin, say so at the start, every one of them."""

import shutil
import subprocess
import sys

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from desloc_jax.errors import UserError
from desloc_jax.hosts import clusters, joined
from desloc_jax.hosts.peers import Peers
from desloc_jax.train.setup import mesh as mesh_lib
from experiments.several import free_port, ROOT
from tests.environment import environment
from tests.runs import write_text

OPTIONS = (
  '--config.steps=4', '--config.seq_len=32', '--config.batch_size=2', '--config.model.layers=1',
  '--config.model.width=32', '--config.model.heads=2', '--config.eval.sequences=4',
  '--config.schedule.warmup_steps=1', '--config.data.sources.text.path=text',
  '--config.data.validation_fraction=0.2', '--config.processes.start_timeout_s=40',
  '--config.health.check=False',
)  # fmt: skip


@pytest.fixture
def start(tmp_path):
  """Starts a process in a folder of its own, with a text and a workdir beside it."""
  started = []

  def start(index, *args, root=ROOT, workdir=tmp_path / 'run', words=300, variables=()):
    folder = tmp_path / str(len(started))
    folder.mkdir()
    if words:
      write_text(folder / 'text', words=words)
    command = [sys.executable, root / 'run.py', f'--config={root / "configs/tiny.py"}', *OPTIONS]
    process = subprocess.Popen(
      [*command, f'--workdir={workdir}', *([f'--process_id={index}'] if index >= 0 else []), *args],
      cwd=folder,
      env=environment(**dict(variables)),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()


def together(count=2):
  return f'--coordinator=127.0.0.1:{free_port()}', f'--num_processes={count}'


def all_refuse(processes, *messages):
  """Checks that every process ended with code 2 and one line that has the messages."""
  for process in processes:
    out, err = process.communicate(timeout=200)
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert process.returncode == 2, (out, err)
    assert len(lines) == 1 and all(text in lines[0] for text in messages), err
    assert 'Traceback' not in err


@pytest.mark.slow
def test_another_config_and_other_code(start, tmp_path):
  for name in ('desloc_jax', 'configs', 'run.py'):
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    copy(ROOT / name, tmp_path / 'copy' / name if copy is shutil.copytree else tmp_path / 'copy')
  with (tmp_path / 'copy' / 'desloc_jax' / 'errors.py').open('a') as file:
    file.write('# Another version.\n')
  flags, other = together(), ('--config.periods.params=7', '--config.seed=3')
  both = [start(0, *flags), start(1, *flags, *other, root=tmp_path / 'copy')]
  all_refuse(
    both,
    'processes 0 and 1 do not run the same: config.seed (0 and 3), ',
    'config.periods.params (16 and 7), code of desloc_jax (',
  )


@pytest.mark.slow
def test_another_text(start):
  flags = together()
  both = [start(0, *flags), start(1, *flags, words=310)]
  all_refuse(both, 'processes 0 and 1 do not run the same: data (')


@pytest.mark.slow
def test_a_workdir_that_is_not_shared(start, tmp_path):
  flags = together()
  both = [start(0, *flags), start(1, *flags, workdir=tmp_path / 'elsewhere')]
  all_refuse(both, 'is not the folder that process 0 writes to')


@pytest.mark.slow
def test_data_that_is_missing_for_one(start):
  flags = together()
  all_refuse([start(0, *flags), start(1, *flags, words=0)], 'text')


@pytest.mark.slow
def test_a_process_that_never_comes(start):
  waits = start(0, *together(), '--config.processes.start_timeout_s=5')
  _, err = waits.communicate(timeout=200)
  assert waits.returncode == 2
  assert len(err.splitlines()) == 1 and 'met at 127.0.0.1' in err  # No stacks of C++.


@pytest.mark.slow
def test_processes_that_count_differently(start):
  address, count = together(2)
  short = '--config.processes.start_timeout_s=15'
  all_refuse(
    [start(0, address, count, short), start(1, address, '--num_processes=3', short)], 'processes'
  )


@pytest.mark.slow
def test_processes_of_slurm_find_each_other(start):
  """With the variables that `srun --ntasks=2` sets; JAX takes the port from the number of the job."""
  variables = {
    'SLURM_JOB_ID': str(free_port()),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': '2',
    'SLURM_STEP_NUM_NODES': '1',
  }
  tasks = [
    start(-1, variables={**variables, 'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)})
    for i in range(2)
  ]
  for i, task in enumerate(tasks):
    out, err = task.communicate(timeout=200)
    assert (task.returncode, 'step 4: validation loss' in out) == (0, i == 0), err


SRUN = {
  'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'a[1-2]', 'SLURM_NTASKS': '4',
  'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '3', 'SLURM_LOCALID': '1',
}  # fmt: skip
MPIRUN_4 = {'OMPI_MCA_orte_hnp_uri': 'x', 'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '0'}
CLUSTERS = {
  'nothing': ({}, ''),
  'srun of one task': (SRUN | {'SLURM_NTASKS': '1', 'SLURM_STEP_NUM_TASKS': '1'}, ''),
  'a batch script before srun': ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'}, ''),
  'a shell on the first of four tasks': (SRUN | {'SLURM_STEP_NUM_TASKS': '1'}, ''),
  'a shell by the number of its step': (SRUN | {'SLURM_STEP_ID': '4294967290'}, ''),
  'allocations': (
    {'LSB_DJOB_NUMPROC': '8', 'PBS_NP': '8', 'NSLOTS': '8', 'FLUX_JOB_SIZE': '4'},
    '',
  ),
  'an array of jobs': ({'SLURM_JOB_ID': '7', 'SLURM_ARRAY_TASK_ID': '3'}, ''),
  'srun': (SRUN, 'Slurm'),
  'srun of an old Slurm': ({n: v for n, v in SRUN.items() if n != 'SLURM_STEP_NUM_TASKS'}, 'Slurm'),
  'srun with PMI': (SRUN | {'PMI_SIZE': '4', 'PMI_RANK': '3', 'PMIX_RANK': '3'}, 'Slurm'),
  'mpirun': (MPIRUN_4, 'Open MPI'),
  'mpirun in a step of Slurm': (SRUN | MPIRUN_4, 'Open MPI'),
  'mpirun of one': ({'OMPI_COMM_WORLD_SIZE': '1', 'PMIX_RANK': '0', 'PMIX_NAMESPACE': 'x'}, ''),
  'torchrun of one': ({'WORLD_SIZE': '1', 'RANK': '0', 'LOCAL_RANK': '0'}, ''),
  'a rank of nothing': ({'RANK': '1', 'LOCAL_RANK': '1'}, ''),
  'one host of SageMaker': ({'SM_HOSTS': '["algo-1"]', 'SM_CURRENT_HOST': 'algo-1'}, ''),
  'one task of TensorFlow': ({'TF_CONFIG': '{"cluster": {"worker": ["a:1"]}}'}, ''),
  'lists that are none': ({'SM_HOSTS': 'algo-1', 'TF_CONFIG': '{"cluster": 3}'}, ''),
  'no number': ({'WORLD_SIZE': 'many', 'PMI_SIZE': ''}, ''),
  'a pod that is no Job': ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, ''),
  'one host of a TPU': ({'TPU_WORKER_HOSTNAMES': 'localhost'}, ''),
}
UNKNOWN_TO_JAX = {
  'Open MPI 5': {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1', 'PMIX_RANK': '1'},
  'PMIx of any number': {'PMIX_RANK': '0'},
  'MPICH': {'PMI_SIZE': '2', 'PMI_RANK': '0'},
  'MVAPICH': {'MV2_COMM_WORLD_SIZE': '2', 'MV2_COMM_WORLD_RANK': '0'},
  'torchrun': {'WORLD_SIZE': '2', 'RANK': '1', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'a'},
  'a launcher that numbers nodes': {'WORLD_SIZE': '2', 'NODE_RANK': '0'},
  'jsrun': {'JSM_NAMESPACE_SIZE': '6', 'JSM_NAMESPACE_RANK': '0'},
  'Flux': {'FLUX_JOB_SIZE': '4', 'FLUX_TASK_RANK': '0'},
  'Cray': {'PALS_RANKID': '3'},
  'torchrun in srun': SRUN | {'WORLD_SIZE': '8', 'RANK': '0'},
  'mpirun in a shell of Slurm': SRUN | {'SLURM_STEP_NUM_TASKS': '1', 'OMPI_COMM_WORLD_SIZE': '4'},
  'srun with variables missing': {n: v for n, v in SRUN.items() if n != 'SLURM_PROCID'},
  'a Job without a cluster': {'JOB_COMPLETION_INDEX': '0'},
  'hosts of a TPU whose chips are not seen': {'TPU_WORKER_HOSTNAMES': 'a,b'},
  'SageMaker': {'SM_HOSTS': '["algo-1","algo-2"]', 'SM_CURRENT_HOST': 'algo-2'},
  'AWS Batch': {'AWS_BATCH_JOB_NUM_NODES': '2', 'AWS_BATCH_JOB_NODE_INDEX': '1'},
  'AzureML': {'AZUREML_NODE_COUNT': '2', 'NODE_RANK': '1'},
  'SkyPilot': {'SKYPILOT_NUM_NODES': '2', 'SKYPILOT_NODE_RANK': '0'},
  'Vertex AI or TensorFlow': {
    'TF_CONFIG': '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"index": 0}}'
  },
  'a Kubeflow Trainer': {'PET_NNODES': '2', 'PET_NODE_RANK': '0'},
  'an address alone': {'JAX_COORDINATOR_ADDRESS': 'a:1'},
}


@pytest.mark.parametrize('case', CLUSTERS)
def test_what_started_this_process(case):
  environment, found = CLUSTERS[case]
  assert clusters.find_cluster(environment) == found
  assert not found or found in clusters.METHODS


@pytest.mark.parametrize('case', UNKNOWN_TO_JAX)
def test_one_of_several_that_jax_does_not_know_does_not_train_alone(case):
  options = '--coordinator=HOST:PORT .*--num_processes=.* --process_id=.* --num_processes=1 '
  with pytest.raises(UserError, match=options):
    clusters.find_cluster(UNKNOWN_TO_JAX[case])


def test_a_job_of_several_tasks_that_trains_alone_is_told(monkeypatch):
  told = []
  monkeypatch.setattr(clusters.logging, 'warning', lambda text, *values: told.append(text % values))
  clusters.find_cluster({'SLURM_JOB_ID': '7', 'SLURM_JOB_NUM_NODES': '4'})
  assert len(told) == 1 and '4 tasks or nodes' in told[0] and 'trains alone' in told[0]
  clusters.find_cluster({'SLURM_JOB_ID': '7', 'SLURM_JOB_NUM_NODES': '1', 'SLURM_NTASKS': '1'})
  assert len(told) == 1


def test_a_pod_that_cannot_find_the_others_does_not_train_alone(monkeypatch):
  pod = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '3'}
  monkeypatch.setattr(clusters.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='this is pod 3 .* pip install "jax.k8s."'):
    clusters.find_cluster(pod)
  monkeypatch.setattr(clusters.importlib.util, 'find_spec', lambda name: name == 'kubernetes')
  assert clusters.find_cluster(pod) == 'Kubernetes'


def test_differences_are_named(monkeypatch):
  others = {'a': 1, 'b': None, 'd': 'x' * 200}
  three = Peers()
  monkeypatch.setattr(three, 'gather', lambda values: [values, values, others])
  three.compare(dict(others))
  with pytest.raises(UserError, match=r'processes 0 and 2 .* a \(2 and 1\), c \(3 and unset\), b '):
    three.compare({'a': 2, 'c': 3, 'd': others['d']})


class Device:
  """A device of a pod, as far as a mesh looks at it."""

  def __init__(self, id, process_index, slice_index=None, platform='gpu'):
    self.id, self.process_index, self.platform = id, process_index, platform
    self.device_kind = 'test'
    if slice_index is not None:
      self.slice_index = slice_index


def ids(rows):
  return [[device.id for device in row] for row in rows]


def test_a_worker_is_on_one_host():
  # Devices that alternate between two hosts.
  devices = [Device(i, i % 2) for i in range(8)]
  assert ids(mesh_lib.order_devices(devices, 2)) == [[0, 2], [4, 6], [1, 3], [5, 7]]
  assert ids(mesh_lib.order_devices(devices, 4)) == [[0, 2, 4, 6], [1, 3, 5, 7]]
  with pytest.raises(UserError, match='mesh.fsdp=8 .* host 0 has 4 devices.*mesh.fsdp=4'):
    mesh_lib.order_devices(devices, 8)
  straddling = mesh_lib.order_devices(devices, 8, straddle=True)
  assert ids(straddling) == [[0, 2, 4, 6, 1, 3, 5, 7]]


def test_the_hosts_of_a_tpu_slice_have_fast_links():
  places = {mesh_lib._fast_links(Device(i, i // 2, platform='tpu')) for i in range(4)}
  assert places == {('slice', 0)}  # One slice has no number.


def test_hosts_with_fast_links_between_them_share_a_worker():
  # Two hosts a slice, two slices.
  devices = [Device(i, i // 2, slice_index=i // 4) for i in range(8)]
  assert ids(mesh_lib.order_devices(devices, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
  with pytest.raises(UserError, match='slice 0 has 4 devices'):
    mesh_lib.order_devices(devices, 8)


def test_processes_of_a_cpu_host_are_apart():
  devices = [Device(i, i // 2, slice_index=0, platform='cpu') for i in range(4)]
  with pytest.raises(UserError, match='process 0 has 2 devices'):
    mesh_lib.order_devices(devices, 4)


def test_values_come_from_whoever_has_them(monkeypatch):
  """As one of two processes, the other of which has the second half of the workers."""
  devices = jax.devices()[:4]
  mesh = jax.sharding.Mesh(np.asarray(devices), ('workers',))
  rows = jax.device_put(
    np.arange(8, dtype=np.int32).reshape(4, 2), NamedSharding(mesh, P('workers'))
  )
  owners = [(i // 2, (slice(i, i + 1), slice(None))) for i in range(4)]
  monkeypatch.setattr(joined, '_is_here', lambda leaf: leaf.ndim == 0)
  monkeypatch.setattr(joined, '_owners', lambda leaf: iter(owners))
  other = np.array([[9, 8], [7, 6]], np.int32).tobytes()
  monkeypatch.setattr(joined, '_all_gather', lambda message, size: [message, other])
  fetched, scalar = joined.Joined(2, 0).fetch((rows, jax.numpy.float32(3)))
  np.testing.assert_array_equal(fetched, [[0, 1], [2, 3], [9, 8], [7, 6]])
  assert scalar == 3


_COMPILES_LATE = """
import sys, time
from desloc_jax.train import main, program
compile = program.Program.compile
def late(self):
  time.sleep(8)
  return compile(self)
if '--process_id=1' in sys.argv:
  program.Program.compile = late
main.main(sys.argv[1:], 'run.py')
"""


def test_who_still_compiles_is_not_taken_for_stuck(tmp_path):
  """Local steps wait for nobody, so that the other one is in its steps by then."""
  write_text(tmp_path / 'text', words=300)
  processes = [
    subprocess.Popen(
      [
        sys.executable, '-c', _COMPILES_LATE, f'--config={ROOT / "configs/tiny.py"}', *OPTIONS,
        '--workdir=run', '--config.periods.params=3', '--config.processes.stuck_timeout_s=3',
        f'--process_id={index}', *address,
      ],
      cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)), stderr=subprocess.PIPE, text=True,
    )
    for address in [together()] for index in range(2)
  ]  # fmt: skip
  for process in processes:
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
