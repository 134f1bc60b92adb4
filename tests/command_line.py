"""Commands in this process: what a user types and what comes of it, without the seconds of a start."""

import contextlib
import io
import subprocess
import sys
from typing import NamedTuple

from absl import flags, logging

from desloc_jax import __main__ as commands
from desloc_jax.hosts import ending
from desloc_jax.train.main import main as train
from experiments.several import ROOT
from tests.environment import environment

_FLAGS = ('config', 'workdir', 'coordinator', 'num_processes', 'process_id', 'mode')


class Ended(NamedTuple):
  """What a command left: its exit code and what it printed."""

  returncode: int
  stdout: str
  stderr: str


def run_py(*args: str) -> Ended:
  """Runs `python run.py` in the checkout."""
  return _run(lambda: train(args, 'python run.py'))


def forget_flags() -> None:
  """Makes the next command of this process the first: absl defines a flag once."""
  ending.belong_to_run(False)
  for name in list(flags.FLAGS):
    if name in _FLAGS or name.startswith('config.'):
      delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()
  sys.modules.pop('config_config', None)  # Of the last config file.


def desloc_jax(*args: str) -> Ended:
  """Runs `python -m desloc_jax` in the checkout."""
  return _run(lambda: commands.main(args))


def process(*args: str, devices: int = 1) -> subprocess.CompletedProcess:
  """Runs `python` in a process of its own in the checkout, for what only that can show."""
  return subprocess.run(
    [sys.executable, *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    env=environment(devices),
  )


def _run(main) -> Ended:
  out, err, code = io.StringIO(), io.StringIO(), 0
  handler = logging.get_absl_handler().python_handler
  before, verbosity = handler.stream, logging.get_verbosity()
  with (
    contextlib.chdir(ROOT),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    handler.stream = err
    try:
      main()
    except SystemExit as end:
      code = end.code or 0
    finally:
      handler.stream = before
      logging.set_verbosity(verbosity)
      forget_flags()
  return Ended(code, out.getvalue(), err.getvalue())
