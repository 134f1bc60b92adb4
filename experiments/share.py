"""More processes of the same command on this machine, which divide its runs and its cores."""

from collections.abc import Iterator, Sequence
import contextlib
import os
import signal
import subprocess
import sys

from desloc_jax.errors import UserError
from desloc_jax.hosts.ending import belong_to_run


@contextlib.contextmanager
def shared(processes: int, program: str, args: Sequence[str]) -> Iterator[None]:
  """Starts `python -m PROGRAM ARGS` until there are `processes` with this one, and ends with them.

  Small runs gain nothing from a second core; two of them at once do. Each process keeps to its
  share of the cores where the system permits it (Linux). Must begin before JAX counts the cores. If
  this process is killed by -9 the others do the rest of the work.

  Raises:
    UserError: there are not as many cores.
  """
  cores = sorted(_cores())
  if not 1 <= processes <= len(cores):
    raise UserError(
      f'--processes is {processes}; expected 1 to {len(cores)}, the cores of this machine.'
    )
  if processes == 1:
    yield
    return
  belong_to_run(False)  # It has to end the others.
  shares = [cores[index::processes] for index in range(processes)]
  command = [sys.executable, '-m', program, *args]
  environment = os.environ | {'TQDM_DISABLE': '1'}  # Bars of several processes would be one mess.
  others = []
  # Between runs too, where the trainer does not catch it.
  before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  try:
    for share in shares[1:]:
      _keep_to(share)  # What is started inherits it.
      # A group of its own: of Ctrl-C it hears by this process alone, as a second signal would not
      # wait for it to save.
      others.append(
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, process_group=0)
      )
    _keep_to(shares[0])
    yield
  except BaseException:
    for other in others:
      other.terminate()  # It saves the run in progress.
    raise
  finally:
    for other in others:
      other.wait()
    signal.signal(signal.SIGTERM, before)
    _keep_to(cores)


def _cores() -> set[int]:
  if hasattr(os, 'sched_getaffinity'):
    return os.sched_getaffinity(0)
  return set(range(os.cpu_count() or 1))


def _keep_to(cores: Sequence[int]) -> None:
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, cores)
