"""Finds out whether this process is one of several that Slurm, Open MPI, Kubernetes or a TPU began.

JAX knows their addresses (`jax.distributed.initialize` without arguments); here is only told
whether to ask it. A guess that is wrong would be costly: a process that trains alone, unnoticed, or
one that waits for others that never come.
"""

from collections.abc import Mapping
import glob
import importlib.util
import os

from desloc_jax.errors import UserError

_ALONE = 'or --num_processes=1 to train alone'


def find_cluster(environment: Mapping[str, str] = os.environ) -> str:
  """Returns what started this process together with others; empty: nothing did.

  Raises:
    UserError: it is one of several pods of Kubernetes, and JAX could not find the others.
  """
  if 'SLURM_STEP_NODELIST' in environment and _count(environment, 'SLURM_NTASKS') > 1:
    return 'Slurm'
  if 'OMPI_MCA_orte_hnp_uri' in environment and _count(environment, 'OMPI_COMM_WORLD_SIZE') > 1:
    return 'Open MPI'
  if _is_on_tpu():
    return 'TPU'
  # Jobs of Kubernetes count their pods only where they are told to: completionMode: Indexed.
  if 'KUBERNETES_SERVICE_HOST' in environment and 'JOB_COMPLETION_INDEX' in environment:
    if not importlib.util.find_spec('kubernetes'):
      raise UserError(
        f'this is pod {environment["JOB_COMPLETION_INDEX"]} of a Kubernetes Job, and the package '
        'kubernetes, which finds the others, is not installed: pip install "jax[k8s]", or give '
        f'--coordinator, --num_processes and --process_id, {_ALONE}.'
      )
    return 'Kubernetes'
  return ''


def _count(environment: Mapping[str, str], name: str) -> int:
  value = environment.get(name, '')
  return int(value) if value.isdigit() else 1


def _is_on_tpu() -> bool:
  # libtpu is also installed to compile for TPUs that are elsewhere.
  chips = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
  return bool(chips) and importlib.util.find_spec('libtpu') is not None
