"""What happens before a command has begun: Ctrl-C, and libraries that cannot be imported.

While libraries are imported Ctrl-C ends the process: Python's own handler would end an import in a
page of traceback, or be lost in C++.
"""

import importlib
import signal
import sys
import threading
import types

BAD_START = 2
_OURS = ('desloc_jax', 'experiments')


def load(module: str) -> types.ModuleType:
  """Imports the module of a command.

  Where a package is missing, or JAX cannot read a variable of the environment, the process ends with
  one line and exit code 2.
  """
  ctrl_c_ends_the_process()
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    if not error.name or error.name.partition('.')[0] in _OURS:
      raise
    message = (
      f'the package {error.name} is not installed: pip install -r requirements-cpu.txt, or '
      f"'desloc_jax[train]'; see README"
    )
  except ValueError as error:
    message = f'libraries cannot be imported: {" ".join(str(error).split())}'
  print(f'error: {message}.', file=sys.stderr)
  sys.exit(BAD_START)


def ctrl_c_ends_the_process() -> None:
  """Has Ctrl-C end this process at once, unless the process ignores it or has a handler for it."""
  _replace(signal.default_int_handler, signal.SIG_DFL)


def ctrl_c_raises() -> None:
  """Has Ctrl-C raise KeyboardInterrupt again: from here on there may be something to tidy up."""
  _replace(signal.SIG_DFL, signal.default_int_handler)


def _replace(handler: object, by: object) -> None:
  in_main_thread = threading.current_thread() is threading.main_thread()
  if in_main_thread and signal.getsignal(signal.SIGINT) is handler:
    signal.signal(signal.SIGINT, by)
