"""Whether JAX has the devices that the user asks for, and what CPUs need before it has them."""

import os

import jax
import jax.extend.backend

from desloc_jax.errors import UserError
from desloc_jax.hosts import host_memory
from desloc_jax.hosts.aside import devices_aside, virtual_devices

_THREADS_A_DEVICE = 4
# Settings of JAX, for debugging mostly, and their values with which a run can be made. Steps are
# compiled, values are NaN where there is none, and shapes and types are promoted.
_USABLE = {
  'jax_disable_jit': (False,), 'jax_debug_nans': (False,), 'jax_debug_infs': (False,),
  'jax_numpy_rank_promotion': ('allow', 'warn'), 'jax_numpy_dtype_promotion': ('standard',),
  'jax_transfer_guard': ('allow', 'log', 'log_explicit'),
}  # fmt: skip


def prepare_cpus() -> None:
  """Sets what CPU devices need of this process; before JAX has its devices."""
  host_memory.keep_freed_memory()
  give_threads_to_collectives()


def give_threads_to_collectives() -> None:
  """Lets virtual CPU devices wait for each other; before JAX has its devices.

  A collective holds its thread until all devices have come. With a thread a device, as XLA takes where
  there are fewer cores, some may hold all threads, also those of steps that were dispatched ahead,
  while another needs one to come: after 40 seconds XLA aborts the process. So it does with a device
  for each of two workers, on two cores, after some hundred steps.
  """
  devices, aside = virtual_devices(), devices_aside()
  threads = _THREADS_A_DEVICE * (devices - aside) if devices - aside > 1 else 0
  if aside:
    # It holds a thread while others are waited for, and so does a line of the log. With one more than
    # there are cores, steps beside an exchange take longer.
    threads = (threads or _cores()) + 2
  if threads:
    os.environ.setdefault('NPROC', str(threads))


def _cores() -> int:
  """Returns how many cores this process may use, which may be some of the machine's.

  XLA shares a step among as many threads as it may have: where they are more than the cores, they take
  these from each other. On one core three take 5% more for a step than one, and four take 12%.
  """
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def check_platforms() -> None:
  """Checks that JAX finds devices, and that its settings permit a run.

  In a run of several processes, once they have met.

  Raises:
    UserError: JAX_PLATFORMS names platforms of which there is none, and names those that there are; or
      the best platform cannot be used; or a setting of JAX makes a run impossible.
  """
  for name, usable in _USABLE.items():
    value = getattr(jax.config, name, None)
    value = getattr(value, 'value', value)  # Of an enumeration, in some versions.
    if value not in (None, *usable):
      raise UserError(f'{name.upper()} is {value}, with which no run can be made; unset it.')
  wanted = jax.config.jax_platforms
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # The latter has no text: 'cuda' without one.
    if not wanted:  # A TPU that another process has, say.
      reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
      raise UserError(f'JAX finds no devices: {reason}') from error
    jax.extend.backend.clear_backends()
    jax.config.update('jax_platforms', None)
    reason = str(error).partition(' (set JAX_PLATFORMS')[0].rstrip('.')
    reason = reason or f'no {wanted} device is here'
    raise UserError(
      f'JAX_PLATFORMS={wanted}: {reason}. Here are: {", ".join(jax.extend.backend.backends())}; '
      'without JAX_PLATFORMS the best of them is taken.'
    ) from error
