"""One run in several processes, by `jax.distributed`: joining, and losing one of them.

When a process dies or hangs, the others say so in one line and end with exit code `PEER_LOST`, so
that whatever started them can start again with what is left. JAX notices a closed connection at
once and a silent process by its heartbeat; it then raises, or ends the process by `abort()`.
"""

from collections.abc import Iterator
import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import threading
import time

import jax
from jax.experimental import multihost_utils

from desloc_jax.errors import UserError
from desloc_jax.hosts import clusters, host_memory
from desloc_jax.hosts.platforms import check_platforms

BAD_START = 2
PEER_LOST = 4

# Texts of the errors that a lost process causes, of types that vary: gloo, NCCL, coordination.
_LOST = (
  'Gloo',
  'NCCL',
  'coordination service',
  'CoordinationService',
  'heartbeat',
  'Socket closed',
)

# Of this run, and of this process among them.
_count, _index = 1, 0
_may_be_ended = False

_stderr = 2
_leaving = threading.Lock()
_code_said: int | None = None
_abort_means = (
  PEER_LOST,
  'error: another process, or process 0 that coordinates them, died or hangs.',
)


def join(
  coordinator: str | None,
  count: int | None,
  index: int | None,
  start_timeout_s: int,
  heartbeat_timeout_s: int,
) -> None:
  """Makes this process one of several, where it is; returns when all of them are there.

  Args:
    coordinator: 'HOST:PORT' of process 0, the same for all.
    count: number of processes. Without coordinator and index, 1 lets a process of a cluster be
      alone.
    index: of this one, from 0. All three None: what Slurm, Open MPI, Kubernetes or a TPU say.
    start_timeout_s: seconds that it waits for the others.
    heartbeat_timeout_s: seconds after which a silent one is taken for dead.

  Raises:
    UserError: the numbers or the address cannot be right.

  Where the others do not come in time, or count otherwise, the process ends with one line and
  `BAD_START`.
  """
  given = (coordinator, count, index)
  if given == (None, 1, None):
    return
  cluster = '' if any(value is not None for value in given) else clusters.find_cluster()
  if not cluster:
    if given == (None, None, None):
      return
    _check_membership(coordinator, count, index)
  others = f'all {count} processes' if count else f'all processes of {cluster}'
  alone = '; --num_processes=1 trains alone' if cluster else ''
  where = f' at {coordinator}' if coordinator else ''
  global _abort_means, _count, _index
  _index = index or 0  # Asking JAX would wait for the others.
  while_running = _abort_means
  _abort_means = (
    BAD_START,
    f'error: not {others} met{where} within {start_timeout_s} s (processes.start_timeout_s): one is '
    f'missing, two have one id, or the address is wrong{alone}.',
  )
  _catch_aborts()
  jax.config.update('jax_enable_preemption_service', False)  # It would swallow SIGTERM.
  with _quick_to_interrupt(), _without_stacks():
    try:
      jax.distributed.initialize(
        *given,
        cluster_detection_method=clusters.METHODS[cluster] if cluster else 'deactivate',
        initialization_timeout=start_timeout_s,
        heartbeat_timeout_seconds=heartbeat_timeout_s,
      )
      check_platforms()
      found = len({device.process_index for device in jax.devices()})
      if count and found != count:
        leave(BAD_START, f'error: --num_processes is {count} here, but {found} processes came.')
      multihost_utils.sync_global_devices('start')  # Connects all; late comers would time out.
    except UserError as error:
      leave(BAD_START, f'error: {error}')
    except Exception as error:  # Of many types.
      if cluster == 'TPU' and 'should be defined' in str(error):
        return  # Chips of one host that belong to no pod.
      if 'DEADLINE_EXCEEDED' in str(error):
        leave(*_abort_means)
      leave(BAD_START, f'error: the processes did not find each other: {_first_line(error)}{alone}')
  _abort_means = while_running
  _count, _index = found, jax.process_index()
  if jax.default_backend() == 'cpu':
    host_memory.keep_freed_memory()


@contextlib.contextmanager
def _quick_to_interrupt() -> Iterator[None]:
  """Lets Ctrl-C end the process at once, where Python would first wait for JAX's C++."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _without_stacks() -> Iterator[None]:
  """Keeps what JAX's C++ writes to stderr from it, a page before an abort, unless all goes well."""
  global _stderr
  sys.stderr.flush()
  with tempfile.TemporaryFile() as kept:
    _stderr = os.dup(2)
    os.dup2(kept.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(_stderr, 2)
      os.close(_stderr)
      _stderr = 2
      kept.seek(0)
      os.write(2, kept.read())


def _check_membership(coordinator: str | None, count: int | None, index: int | None) -> None:
  if None in (coordinator, count, index):
    raise UserError('--coordinator, --num_processes and --process_id belong together.')
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise UserError(f'--coordinator is {coordinator!r}; expected HOST:PORT of process 0.')
  if not 0 <= index < count:
    raise UserError(
      f'--process_id is {index}; expected 0 to {count - 1} with --num_processes={count}.'
    )


def several() -> bool:
  """Returns whether the run is one of several processes."""
  return _count > 1


def count() -> int:
  """Returns the number of processes of the run."""
  return _count


def index() -> int:
  """Returns which of them this is, from 0."""
  return _index


def belong_to_run(alone: bool = True) -> None:
  """Says whether this process is there for the run alone, and may be ended at any moment by it.

  Unlike a notebook's, or one that has other processes to end.
  """
  global _may_be_ended
  _may_be_ended = alone


def may_be_ended() -> bool:
  """Returns whether this process is there for the run alone."""
  return _may_be_ended


def writes() -> bool:
  """Returns whether this process writes the logs: the first one alone does."""
  return _index == 0


def is_lost_peer(error: BaseException | None) -> bool:
  """Returns whether an error comes of another process that is gone."""
  if error is None or not several():
    return False
  return any(text in str(error) for text in _LOST) or is_lost_peer(
    error.__cause__ or error.__context__
  )


def leave(code: int, text: str = '') -> None:
  """Ends the process at once, with a last line; JAX would wait minutes for the others at exit."""
  global _code_said
  with _leaving:
    first = _code_said is None
    if first:
      _code_said = code
      sys.stdout.flush()
      sys.stderr.flush()
      if text:
        os.write(_stderr, f'{text}\n'.encode())
      os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # What C++ threads have to say now is noise.
  # Where the coordinator goes, the others are aborted: it goes last.
  time.sleep(2 if writes() or not first else 0)
  os._exit(_code_said)


def set_last_words(code: int, text: str) -> None:
  """Sets what is said, and the exit code, where JAX's C++ aborts this process."""
  global _abort_means
  _abort_means = code, text


def _on_abort(_: int) -> None:
  leave(*_abort_means)


# Kept as long as the process lives: C calls it.
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_on_abort)


def _catch_aborts() -> None:
  """Has `_on_abort` run where JAX's C++ calls abort(), even while Python waits for a device.

  Python's own handlers only run between instructions of the main thread.
  """
  libc = ctypes.CDLL(None)
  libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, type(_HANDLER)]
  libc.signal(signal.SIGABRT, _HANDLER)


def _first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][-240:]
