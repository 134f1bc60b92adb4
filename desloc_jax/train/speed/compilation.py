"""Compiled programs stay in a folder, so that a later start need not compile them again.

JAX finds them by a hash of program, devices, flags and its own version.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import re
import tempfile
import warnings

from absl import logging
import jax
from jax.experimental.compilation_cache import compilation_cache

from desloc_jax.paths import resolve

USER = 'user'  # The value of the option that stands for a folder of the user's caches.
_MOST_BYTES = 4 * 2**30
_SUFFIX = '-cache'  # Of JAX's entries.
_TROUBLE = 'Error (reading|writing) persistent compilation cache entry'


def keep_programs(option: str) -> None:
  """Has JAX keep what it compiles; JAX_COMPILATION_CACHE_DIR, where it is set, says where.

  A folder that cannot be written to, or a damaged entry, is told once, and compiled anew.

  Args:
    option: `compilation.cache`: a folder, '' for none, or 'user'.

  Raises:
    UserError: the option is no folder of this machine.
  """
  _tell_once()
  if jax.config.jax_compilation_cache_dir or not option:
    return
  folder = _user_folder() if option == USER else resolve(option, 'compilation.cache')
  if folder is None:
    logging.warning(
      'compiled programs are not kept, as this user has no home; --config.compilation.cache names a '
      'folder, or none.'
    )
    return
  folder /= _machine()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
    _prune(folder)
  except OSError as error:
    logging.warning(
      'compiled programs are not kept, as %s cannot be written to (%s); --config.compilation.cache '
      'names another folder, or none.',
      folder,
      error.strerror,
    )
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  compilation_cache.reset_cache()  # Had something been compiled before, JAX would not look again.


def _user_folder() -> pathlib.Path | None:
  # `~` stays as it is where nobody knows the user, as in some containers: that would be a folder here.
  places = os.environ.get('XDG_CACHE_HOME', ''), os.path.expanduser('~/.cache')
  return next((pathlib.Path(each) / 'desloc_jax' for each in places if os.path.isabs(each)), None)


def _machine() -> str:
  """Returns a name for machines that run each other's programs: on CPUs those of one kind."""
  if jax.default_backend() != 'cpu':
    return jax.default_backend()
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
    kind = re.search(r'^(flags|Features)\s*:.*$', text, re.MULTILINE)[0]
  except (OSError, TypeError):  # Not Linux: each machine by itself.
    kind = platform.node()
  return f'cpu-{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}'


def _prune(folder: pathlib.Path) -> None:
  """Deletes the entries that were not read for the longest time where there are too many."""
  entries = [(path.stat(), path) for path in folder.glob(f'*{_SUFFIX}')]
  entries.sort(key=lambda entry: entry[0].st_atime, reverse=True)
  size = 0
  for found, path in entries:
    size += found.st_size
    if size > _MOST_BYTES:
      path.unlink(missing_ok=True)


@functools.cache
def _tell_once() -> None:
  """Replaces JAX's warning of each entry by one line for all."""
  show = warnings.showwarning
  told = []

  def show_or_tell(message, category, *place, **options):
    if not (trouble := re.match(_TROUBLE, str(message))):
      return show(message, category, *place, **options)
    if trouble[1] == 'reading':
      _drop_damaged(pathlib.Path(jax.config.jax_compilation_cache_dir))
    if not told:
      told.append(message)
      logging.warning('%s. It is compiled anew.', str(message).splitlines()[0][:300].rstrip('.'))

  warnings.showwarning = show_or_tell
  warnings.filterwarnings('always', message=_TROUBLE)


def _drop_damaged(folder: pathlib.Path) -> None:
  """Deletes damaged entries, which JAX would not write over."""
  try:
    from jax._src.compilation_cache import decompress_executable  # No public name.
  except ImportError:
    return
  for path in folder.glob(f'*{_SUFFIX}'):
    with contextlib.suppress(OSError):
      try:
        decompress_executable(path.read_bytes())
      except Exception:  # Of zlib or zstd, whichever JAX has found.
        path.unlink()
