"""The environments of the peers: made once, each in a folder of its own, from the package registry."""

from collections.abc import Sequence
import os
import pathlib
import shutil
import subprocess
import sys

from tqdm import tqdm

# Python of at least this, and packages.
ENVIRONMENTS = {
  'torch': ((3, 11), ('torch==2.13.0', 'torchft==0.2.0', 'numpy')),
  # MaxText names nothing that it needs: these are what its module imports.
  'maxtext': (
    (3, 12),
    (
      'maxtext==0.2.5', 'drjax', 'jax', 'flax', 'optax', 'jaxtyping', 'omegaconf', 'packaging',
      'pathwaysutils', 'jinja2',
    ),
  ),
}  # fmt: skip
_MADE = 'made'  # In the folder of an environment when all is installed.
_LINES = 3  # Of what pip printed last.


class NotHere(Exception):
  """An environment cannot be made on this machine; says why."""


def python_of(name: str, cache: pathlib.Path, pythons: Sequence[str]) -> str:
  """Returns the Python of an environment, which is made if it is not there.

  Args:
    name: of `ENVIRONMENTS`.
    cache: folder of all of them.
    pythons: that it can be made by; the first that is new enough is taken.

  Raises:
    NotHere: there is no such Python, or a package cannot be installed.
  """
  folder = cache / name
  python = folder / 'bin' / 'python'
  least, packages = ENVIRONMENTS[name]
  if (folder / _MADE).exists() and (folder / _MADE).read_text() == ' '.join(packages):
    return str(python)
  shutil.rmtree(folder, ignore_errors=True)
  interpreter = _new_enough(least, pythons)
  tqdm.write(f'{name}: installing {", ".join(packages)} in {folder}', file=sys.stderr)
  _run(interpreter, '-m', 'venv', str(folder))
  _run(str(python), '-m', 'pip', 'install', '-q', *packages)
  (folder / _MADE).write_text(' '.join(packages))
  return str(python)


def environment(**variables: str) -> dict[str, str]:
  """Returns the environment of a program: this one's, on CPUs, with our repository to import from."""
  root = str(pathlib.Path(__file__).parents[3])
  # Users' flags of XLA are for one jaxlib.
  inherited = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  return inherited | {'PYTHONPATH': root, 'JAX_PLATFORMS': 'cpu'} | variables


def _new_enough(least: tuple[int, int], pythons: Sequence[str]) -> str:
  question = f'import sys; sys.exit(sys.version_info < {least})'
  for python in pythons:
    path = shutil.which(python)
    if (
      path
      and not subprocess.run([path, '-c', question], capture_output=True, check=False).returncode
    ):
      return path
  raise NotHere(f'no Python {least[0]}.{least[1]} or newer; name one by --pythons')


def _run(*command: str) -> None:
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  if result.returncode:
    lines = [line for line in result.stderr.splitlines() if not line.startswith('WARNING')]
    raise NotHere(' '.join(lines[-_LINES:]))
