"""Joining the other processes of a run, by `jax.distributed`.

When a process dies or hangs, the others say so in one line and end with exit code `PEER_LOST`, so
that whatever started them can start again with what is left. JAX notices a closed connection at
once and a silent process by its heartbeat; it then raises, or ends the process by `abort()`.
"""

from collections.abc import Iterator
import contextlib
import os
import re
import signal
import socket
import sys
import threading

import jax
from jax._src.clusters import ClusterEnv  # What JAX finds of a cluster has no public name.
from jax.experimental import multihost_utils

from desloc_jax.errors import UserError
from desloc_jax.files import unnamed_file
from desloc_jax.hosts import clusters
from desloc_jax.hosts.aside import set_aside
from desloc_jax.hosts.ending import (
  BAD_START,
  catch_aborts,
  go_last,
  leave,
  set_last_words,
  write_to,
)
from desloc_jax.hosts.joined import Joined
from desloc_jax.hosts.peers import set_peers
from desloc_jax.hosts.platforms import check_platforms, prepare_cpus

_ADDRESS = re.compile(r'(?:\[[^\[\]]+\]|[^:\[\]]+):([0-9]+)')  # HOST:PORT, with the port.


def join(
  coordinator: str | None,
  count: int | None,
  index: int | None,
  start_timeout_s: int,
  heartbeat_timeout_s: int,
  sets_aside: bool = False,
) -> None:
  """Makes this process one of several, where it is; returns when all of them are there.

  From then on they are `peers()`.

  Args:
    coordinator: 'HOST:PORT' of process 0, the same for all.
    count: number of processes. Without coordinator and index, 1 lets a process of a cluster be
      alone.
    index: of this one, from 0. All three None: what Slurm, Open MPI, Kubernetes or a TPU say.
    start_timeout_s: seconds that it waits for the others.
    heartbeat_timeout_s: seconds after which a silent one is taken for dead.
    sets_aside: whether each gets a CPU device more, for exchanges behind its steps.

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
    if index == 0:
      _check_port_is_free(coordinator, 'Use another port for --coordinator')
  elif clusters.METHODS[cluster]:
    _check_port_that_jax_takes(clusters.METHODS[cluster], start_timeout_s)
  others = f'all {count} processes' if count else f'all processes of {cluster}'
  alone = '; --num_processes=1 trains alone' if cluster else ''
  where = f' at {coordinator}' if coordinator else ''
  if sets_aside:
    set_aside()
  prepare_cpus()
  too_late = (
    BAD_START,
    f'error: not {others} met{where} within {start_timeout_s} s (processes.start_timeout_s): one is '
    f'missing, two have one id, or the address is wrong{alone}.',
  )
  while_running = set_last_words(*too_late)
  go_last(not index)  # Where it is not given, asking JAX would wait for the others.
  catch_aborts()
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
        go_last(False)
        return  # Chips of one host that belong to no pod.
      if 'DEADLINE_EXCEEDED' in str(error):
        leave(*too_late)
      leave(BAD_START, f'error: the processes did not find each other: {_first_line(error)}{alone}')
  set_last_words(*while_running)
  if found > 1:
    set_peers(Joined(found, jax.process_index()))
  go_last(found > 1 and jax.process_index() == 0)


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
  sys.stderr.flush()
  with unnamed_file() as kept:
    stderr = os.dup(2)
    before = write_to(stderr)
    os.dup2(kept.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(stderr, 2)
      os.close(stderr)
      write_to(before)
      kept.seek(0)
      os.write(2, kept.read())


def _check_membership(coordinator: str | None, count: int | None, index: int | None) -> None:
  if None in (coordinator, count, index):
    raise UserError('--coordinator, --num_processes and --process_id belong together.')
  found = _ADDRESS.fullmatch(coordinator)
  if not found or not 0 < int(found[1]) < 2**16:
    raise UserError(
      f'--coordinator is {coordinator!r}; expected HOST:PORT of process 0, with a port from 1 to '
      '65535, and an address of IPv6 in brackets.'
    )
  if not 0 <= index < count:
    raise UserError(
      f'--process_id is {index}; expected 0 to {count - 1} with --num_processes={count}.'
    )


def _check_port_that_jax_takes(method: str, timeout_s: int) -> None:
  address, _, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, method, timeout_s
  )
  if index == 0:
    _check_port_is_free(address, 'Set JAX_COORDINATOR_PORT of all processes to another one')


def _check_port_is_free(coordinator: str, remedy: str) -> None:
  """Checks that process 0 can listen: JAX's C++ would end it by a segmentation fault."""
  port = int(coordinator.rpartition(':')[2])
  try:
    socket.create_server(('', port)).close()
  except OSError as error:
    reason = os.strerror(error.errno)
    raise UserError(
      f'process 0 cannot listen at port {port} of the coordinator {coordinator} ({reason}): '
      f'another program does, or an earlier run. {remedy}.'
    ) from error


def _first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][-240:]
