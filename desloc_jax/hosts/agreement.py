"""What all processes of a run must have in common is compared at the start, before any compute.

Processes that differ would train on, each its own run, and average what does not belong together.
"""

import functools
import hashlib
import importlib.metadata
import pathlib
import secrets

from ml_collections import config_dict

from desloc_jax.errors import UserError
from desloc_jax.hosts.peers import peers
from desloc_jax.options.values import flatten

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def check_agreement(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Checks that all processes have the same config, code, packages and folder for checkpoints.

  Raises:
    UserError: on every process, what differs and between which.
  """
  check_same_run(config)
  _check_shared_folder(workdir)


def check_same_run(config: config_dict.ConfigDict, **options: object) -> None:
  """Checks that all processes have the same config, code, packages and other options.

  Raises:
    UserError: on every process, what differs and between which.
  """
  here = {f'config.{name}': value for name, value in flatten(config).items()} | options
  here |= {'code of desloc_jax': code_fingerprint()}
  here |= {f'version of {name}': importlib.metadata.version(name) for name in _PACKAGES}
  peers().compare(here)


@functools.cache
def code_fingerprint() -> str:
  """Returns a hash of all Python files of the package."""
  package, digest = pathlib.Path(__file__).parent.parent, hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    digest.update(f'{path.relative_to(package)}\0'.encode() + path.read_bytes() + b'\0')
  return digest.hexdigest()[:16]


def _check_shared_folder(workdir: pathlib.Path) -> None:
  """Checks that process 0 and the others see the same folder, where checkpoints are written."""
  token = workdir / f'.begun-{peers().gather(secrets.token_hex(8))[0]}'

  def leave_token():
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      for left in workdir.glob('.begun-*'):  # By a process that was killed.
        left.unlink(missing_ok=True)
      token.touch()
    except OSError as error:
      raise UserError(f'--workdir={workdir} cannot be written: {error.strerror}.') from error

  def look():
    if not token.exists():
      raise UserError(
        f'--workdir={workdir} is not the folder that process 0 writes to; all processes need one '
        'folder, on a disk that they share.'
      )

  peers().on_first(leave_token)
  try:
    peers().together(look)
  finally:
    if peers().is_first:
      token.unlink(missing_ok=True)
