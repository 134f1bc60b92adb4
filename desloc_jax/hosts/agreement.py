"""What all processes of a run must have in common is compared at the start, before any compute.

Processes that differ would train on, each its own run, and average what does not belong together.
"""

from collections.abc import Callable
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import secrets
from typing import TypeVar

from ml_collections import config_dict

from desloc_jax.errors import UserError
from desloc_jax.hosts import exchange, processes
from desloc_jax.options.table import flatten

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
_SHOWN = 5  # Differences that an error lists.
Result = TypeVar('Result')


def check_agreement(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Checks that all processes have the same config, code, packages and folder for checkpoints.

  Raises:
    UserError: on every process, what differs and between which.
  """
  check_same_run(config)
  if processes.several():
    _check_shared_folder(workdir)


def check_same_run(config: config_dict.ConfigDict, **options: object) -> None:
  """Checks that all processes have the same config, code, packages and other options.

  Raises:
    UserError: on every process, what differs and between which.
  """
  if not processes.several():
    return
  here = {f'config.{name}': value for name, value in flatten(config).items()} | options
  here |= {'code of desloc_jax': code_fingerprint()}
  here |= {f'version of {name}': importlib.metadata.version(name) for name in _PACKAGES}
  compare(here)


def compare(here: dict[str, object]) -> None:
  """Checks that values of JSON types, by name, are the same on all processes.

  Raises:
    UserError: on every process, the first of them that differ from those of process 0.
  """
  first, *others = map(json.loads, exchange.exchange_text(json.dumps(here)))
  for process, values in enumerate(others, 1):
    differing = [
      f'{name} ({_shown(first, name)} and {_shown(values, name)})'
      for name in {**first, **values}
      if first.get(name) != values.get(name) or (name in first) != (name in values)
    ]
    if differing:
      more = f' and {len(differing) - _SHOWN} more' if len(differing) > _SHOWN else ''
      raise UserError(
        f'processes 0 and {process} do not run the same: {", ".join(differing[:_SHOWN])}{more}.'
      )


def together(prepare: Callable[[], Result], also: tuple[type[Exception], ...] = ()) -> Result:
  """Returns what `prepare` returns, once it has succeeded on every process.

  Raises:
    UserError: on every process, where it did on one of them; the kinds of `also` likewise.
  """
  if not processes.several():
    return prepare()
  problem, result, error = None, None, None
  try:
    result = prepare()
  except (UserError, *also) as own:
    error, problem = own, _kind(own, also)
  problems = list(map(json.loads, exchange.exchange_text(json.dumps([problem, str(error)]))))
  if error:
    raise error
  for process, (kind, text) in enumerate(problems):
    if kind is not None:
      raise (UserError, *also)[kind](f'process {process} cannot begin: {text}')
  return result


def from_first(prepare: Callable[[], Result], also: tuple[type[Exception], ...] = ()) -> Result:
  """Returns what `prepare` returns on process 0, of JSON types; the others are told.

  Raises:
    UserError: on every process, where it did on process 0; the kinds of `also` likewise.
  """
  if not processes.several():
    return prepare()
  result, kind, text = None, None, ''
  if processes.writes():
    try:
      result = prepare()
    except (UserError, *also) as error:
      kind, text = _kind(error, also), str(error)
  result, kind, text = json.loads(exchange.exchange_text(json.dumps([result, kind, text]))[0])
  if kind is not None:
    raise (UserError, *also)[kind](text)
  return result


def _kind(error: Exception, also: tuple[type[Exception], ...]) -> int:
  return next(i for i, kind in enumerate((UserError, *also)) if isinstance(error, kind))


@functools.cache
def code_fingerprint() -> str:
  """Returns a hash of all Python files of the package."""
  package, digest = pathlib.Path(__file__).parent.parent, hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    digest.update(f'{path.relative_to(package)}\0'.encode() + path.read_bytes() + b'\0')
  return digest.hexdigest()[:16]


def _check_shared_folder(workdir: pathlib.Path) -> None:
  """Checks that process 0 and the others see the same folder, where checkpoints are written."""
  token = workdir / f'.begun-{exchange.exchange_text(secrets.token_hex(8))[0]}'

  def leave_token():
    try:
      if processes.writes():
        workdir.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
      raise UserError(f'--workdir={workdir} cannot be written: {error.strerror}.') from error

  def look():
    if not token.exists():
      raise UserError(
        f'--workdir={workdir} is not the folder that process 0 writes to; all processes need one '
        'folder, on a disk that they share.'
      )

  together(leave_token)
  try:
    together(look)
  finally:
    if processes.writes():
      token.unlink(missing_ok=True)


def _shown(values: dict[str, object], name: str) -> str:
  return f'{values[name]!r:.60}' if name in values else 'unset'
