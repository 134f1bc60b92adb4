"""Finds out whether this process is one of several that a launcher began, and whether JAX knows them.

JAX knows the addresses of some launchers' processes (`jax.distributed.initialize` without
arguments); here is only told whether to ask it. A guess that is wrong would be costly: a process that
trains alone, unnoticed and into the workdir of others, or one that waits for others that never come.
So whatever says that there are several, and is not known to JAX, is refused; but being in an
allocation (Slurm, LSF, PBS), where nothing was launched yet, is not being launched.
"""

from collections.abc import Mapping
import glob
import importlib.util
import json
import os
from typing import NamedTuple

from absl import logging

from desloc_jax.errors import UserError

# What JAX calls the clusters that `find_cluster` finds; None: it has no name to ask for.
METHODS = {'Slurm': 'slurm', 'Open MPI': 'ompi', 'Kubernetes': None, 'TPU': None}
_SLURM_FOR_JAX = (
  'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'
)  # fmt: skip
_SLURM_STEPS = 0xFFFFFFF0  # Ids from there on: a batch script, an interactive shell.


class _Launcher(NamedTuple):
  """Variables of the number of processes, or of their list, and of which one this is; '': none."""

  name: str
  size: str
  rank: str
  needs_rank: bool = False  # Its allocations have the size too.


_LAUNCHERS = (
  _Launcher('Open MPI', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
  _Launcher('MPICH or Intel MPI', 'PMI_SIZE', 'PMI_RANK'),
  _Launcher('MVAPICH', 'MV2_COMM_WORLD_SIZE', 'MV2_COMM_WORLD_RANK'),
  _Launcher('MVAPICH', 'MVP_COMM_WORLD_SIZE', 'MVP_COMM_WORLD_RANK'),
  _Launcher('jsrun', 'JSM_NAMESPACE_SIZE', 'JSM_NAMESPACE_RANK'),
  _Launcher('Flux', 'FLUX_JOB_SIZE', 'FLUX_TASK_RANK', needs_rank=True),
  _Launcher('Horovod', 'HOROVOD_SIZE', 'HOROVOD_RANK'),
  _Launcher('PMIx', '', 'PMIX_RANK'),
  _Launcher('PALS', '', 'PALS_RANKID'),
  _Launcher('a Kubernetes Job', '', 'JOB_COMPLETION_INDEX'),
  _Launcher('the environment', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'),
  _Launcher('torchrun', 'WORLD_SIZE', 'RANK'),
  _Launcher('a Kubeflow Trainer', 'PET_NNODES', 'PET_NODE_RANK'),
  _Launcher('AzureML', 'AZUREML_NODE_COUNT', 'NODE_RANK'),
  _Launcher('AWS Batch', 'AWS_BATCH_JOB_NUM_NODES', 'AWS_BATCH_JOB_NODE_INDEX'),
  _Launcher('SkyPilot', 'SKYPILOT_NUM_NODES', 'SKYPILOT_NODE_RANK'),
  _Launcher('SageMaker', 'SM_HOSTS', ''),
  _Launcher('TF_CONFIG', 'TF_CONFIG', ''),
)
_TOO_USUAL = ('RANK', 'NODE_RANK')  # Alone they say nothing.


class _Claim(NamedTuple):
  """What a launcher says of this process; None: it does not say that."""

  launcher: str
  size: int | None
  rank: int | None
  quoted: str  # Its variables.


def find_cluster(environment: Mapping[str, str] = os.environ) -> str:
  """Returns what started this process together with others, a key of `METHODS`; empty: nothing did.

  Raises:
    UserError: it is one of several, and JAX cannot find the others.
  """
  claims = _claims(environment)
  several = [claim for claim in claims if (claim.size or 0) > 1 or (claim.rank or 0) > 0]
  if 'OMPI_MCA_orte_hnp_uri' in environment and any(c.launcher == 'Open MPI' for c in several):
    return 'Open MPI'
  slurm = _slurm_tasks(environment)
  if slurm > 1:
    _check_slurm(environment, slurm, several)
    return 'Slurm'
  if _is_on_tpu():
    return 'TPU'
  if 'KUBERNETES_SERVICE_HOST' in environment and 'JOB_COMPLETION_INDEX' in environment:
    return _kubernetes(environment['JOB_COMPLETION_INDEX'])
  hosts = environment.get('TPU_WORKER_HOSTNAMES', '').split(',')
  if len(hosts) > 1:
    quoted = f'TPU_WORKER_HOSTNAMES names {len(hosts)}'
    several.append(_Claim('a TPU pod', len(hosts), _number(environment, 'TPU_WORKER_ID'), quoted))
  if several:
    raise _unknown_to_jax(several[0])
  if 'JAX_COORDINATOR_ADDRESS' in environment:
    quoted = f'JAX_COORDINATOR_ADDRESS={environment["JAX_COORDINATOR_ADDRESS"]}'
    raise _unknown_to_jax(_Claim('the environment', None, None, quoted))
  alone = slurm == 1 or any(claim.size == 1 for claim in claims)
  # Jobs of Kubernetes count their pods, and PMIx its processes, only where there may be several.
  for claim in claims:
    if claim.size is None and not alone:
      raise _unknown_to_jax(claim)
  _warn_of_allocation(environment)
  return ''


def _claims(environment: Mapping[str, str]) -> list[_Claim]:
  claims = []
  for name, size_name, rank_name, needs_rank in _LAUNCHERS:
    size, rank = _size(environment, size_name), _number(environment, rank_name)
    if size is None and (rank is None or rank_name in _TOO_USUAL) or needs_rank and rank is None:
      continue
    names = [each for each in (size_name, rank_name) if each in environment]
    quoted = ', '.join(f'{each}={environment[each]}' for each in names)
    claims.append(_Claim(name, size, rank, quoted))
  return claims


def _size(environment: Mapping[str, str], name: str) -> int | None:
  """Returns a number, or the length of a list in JSON: of hosts, or of the tasks of a cluster."""
  try:
    value = json.loads(environment.get(name, ''))
    if isinstance(value, dict):
      value = [task for tasks in value['cluster'].values() for task in tasks]
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    value = None
  return len(value) if isinstance(value, list) else _number(environment, name)


def _number(environment: Mapping[str, str], name: str) -> int | None:
  value = environment.get(name, '').strip()
  return int(value) if value.isdecimal() else None


def _slurm_tasks(environment: Mapping[str, str]) -> int:
  """Returns how many tasks srun started together with this one, itself included; 0: it did not."""
  if (_number(environment, 'SLURM_STEP_ID') or 0) >= _SLURM_STEPS:
    return 0
  tasks = _number(environment, 'SLURM_STEP_NUM_TASKS')
  if tasks is None and 'SLURM_STEP_NODELIST' in environment:
    tasks = _number(environment, 'SLURM_NTASKS')
  return tasks or 0


def _check_slurm(environment: Mapping[str, str], tasks: int, others: list[_Claim]) -> None:
  """Checks that JAX can join the tasks of a step, and that each task is one process."""
  rank = _number(environment, 'SLURM_PROCID')
  claim = _Claim('Slurm', tasks, rank, f'{tasks} tasks of this step')
  missing = [name for name in _SLURM_FOR_JAX if name not in environment]
  if missing or _number(environment, 'SLURM_NTASKS') != tasks:
    what = missing[0] if missing else f'SLURM_NTASKS={environment["SLURM_NTASKS"]}'
    raise _unknown_to_jax(claim, f': {what} is {"missing" if missing else "another number"}')
  for other in others:
    if other.size is not None and other.size != tasks:
      raise _unknown_to_jax(other, f': Slurm says that they are {tasks}')


def _kubernetes(index: str) -> str:
  if not importlib.util.find_spec('kubernetes'):
    raise UserError(
      f'this is pod {index} of a Kubernetes Job, and the package kubernetes, which finds the '
      'others, is not installed: pip install "jax[k8s]", or give --coordinator, --num_processes '
      'and --process_id, or --num_processes=1 to train alone.'
    )
  return 'Kubernetes'


def _unknown_to_jax(claim: _Claim, why: str = '') -> UserError:
  size, rank = claim.size or 'N', 'I' if claim.rank is None else claim.rank
  return UserError(
    f'{claim.launcher} started this process as one of '
    f'{"several" if claim.size is None else claim.size} ({claim.quoted}), and JAX cannot find the '
    f'others by itself{why}. Give each --coordinator=HOST:PORT of process 0, --num_processes={size} '
    f'and --process_id={rank}, or --num_processes=1 to train alone.'
  )


def _warn_of_allocation(environment: Mapping[str, str]) -> None:
  names = ('SLURM_NTASKS', 'SLURM_JOB_NUM_NODES')
  tasks = max(_number(environment, name) or 1 for name in names)
  if 'SLURM_JOB_ID' in environment and tasks > 1:
    logging.warning(
      'Slurm gave this job %d tasks or nodes; this process was started by itself, and trains alone.',
      tasks,
    )


def _is_on_tpu() -> bool:
  # libtpu is also installed to compile for TPUs that are elsewhere.
  chips = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
  return bool(chips) and importlib.util.find_spec('libtpu') is not None
