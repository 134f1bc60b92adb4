"""One run in several processes, by `jax.distributed`: joining, sharing values, and losing a process.

When a process dies or hangs, the others say so in one line and end with exit code `PEER_LOST`, so
that whatever started them can start again with what is left. JAX notices a closed connection at
once and a silent process by its heartbeat; it then raises, or ends the process by `abort()`.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Sharding
import numpy as np

from desloc_jax.errors import UserError

BAD_START = 2
PEER_LOST = 4
JOIN_TIMEOUT_S = 120
HEARTBEAT_TIMEOUT_S = 20  # Noticed within it and a few seconds, told within 30.

# Texts of the errors that a lost process causes, of types that vary: gloo, NCCL, coordination.
_LOST = (
  'Gloo',
  'NCCL',
  'coordination service',
  'CoordinationService',
  'heartbeat',
  'Socket closed',
)

_leaving = threading.Lock()
_code_said: int | None = None
_abort_means = (
  PEER_LOST,
  'error: another process, or process 0 that coordinates them, died or hangs.',
)


def join(coordinator: str, count: int, index: int) -> None:
  """Makes this process number `index` of `count`; returns when all of them are there.

  Args:
    coordinator: 'HOST:PORT' of process 0, the same for all.
    count: number of processes.
    index: of this one, from 0.

  Raises:
    UserError: the numbers or the address cannot be right.

  Where the others do not come in `JOIN_TIMEOUT_S`, or count otherwise, the process ends with one
  line and `BAD_START`.
  """
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise UserError(f'--coordinator is {coordinator!r}; expected HOST:PORT of process 0.')
  if not 0 <= index < count:
    raise UserError(
      f'--process_id is {index}; expected 0 to {count - 1} with --num_processes={count}.'
    )
  global _abort_means
  while_running, _abort_means = (
    _abort_means,
    (
      BAD_START,
      f'error: not all {count} processes met at '
      f'{coordinator} within {JOIN_TIMEOUT_S} s: one is missing, two have one id, or the address is wrong.',
    ),
  )
  _catch_aborts()
  jax.config.update('jax_enable_preemption_service', False)  # It would swallow SIGTERM.
  try:
    jax.distributed.initialize(
      coordinator,
      count,
      index,
      initialization_timeout=JOIN_TIMEOUT_S,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
    )
    found = len({device.process_index for device in jax.devices()})
    if found != count:
      leave(BAD_START, f'error: --num_processes is {count} here, but {found} processes came.')
    multihost_utils.sync_global_devices('start')  # Connects all; late comers would time out.
  except Exception as error:  # Of many types.
    leave(BAD_START, f'error: the processes did not find each other: {_first_line(error)}')
  _abort_means = while_running


def several() -> bool:
  """Returns whether the run is one of several processes."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def writes() -> bool:
  """Returns whether this process writes the logs: the first one alone does."""
  return not several() or jax.process_index() == 0


def place(array: np.ndarray, sharding: Sharding) -> jax.Array:
  """Returns an array that every process has whole, on the devices; each takes its part."""
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(tree: Any) -> Any:
  """Returns a tree of arrays in NumPy, whole on every process; all processes must call it."""
  if not several():
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def anywhere(flag: bool) -> bool:
  """Returns whether `flag` is true in some process; all processes must call it."""
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag)))) if several() else flag


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
        os.write(2, f'{text}\n'.encode())
      os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # What C++ threads have to say now is noise.
  # Where the coordinator goes, the others are aborted: it goes last.
  time.sleep(2 if writes() or not first else 0)
  os._exit(_code_said)


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
