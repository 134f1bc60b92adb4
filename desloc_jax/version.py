"""The version of this package, where a build can read it without importing JAX."""

import pathlib
import subprocess

__version__ = '0.1.0'


def commit() -> str | None:
  """Returns the commit of the checkout that this code is in, '-dirty' if it was changed; else None."""
  folder = pathlib.Path(__file__).parents[1]
  if not (folder / '.git').exists():
    return None
  command = ['git', '-C', str(folder), 'describe', '--always', '--dirty', '--abbrev=12']
  try:
    found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
  except (OSError, subprocess.SubprocessError):  # No git here, or a checkout of another user.
    return None
  return found.stdout.strip()
