"""Whether JAX has the devices that the user asks for, and threads for virtual ones."""

import os

import jax
import jax.extend.backend

from desloc_jax.errors import UserError
from desloc_jax.hosts.aside import virtual_devices

_THREADS_A_DEVICE = 4


def give_threads_to_collectives(workers: int) -> None:
  """Lets virtual CPU devices that share a worker wait for each other; before JAX has its devices.

  XLA runs what does not depend on each other at once, and a collective holds its thread until all
  devices have come. With a thread a device, as XLA takes where there are fewer cores, half of the
  devices may wait in one collective and half in another: after 40 seconds XLA aborts the process.
  Devices that are a worker each meet in its averages alone, where this was not seen.
  """
  devices = virtual_devices()
  if devices > workers:
    os.environ.setdefault('NPROC', str(_THREADS_A_DEVICE * devices))


def check_platforms() -> None:
  """Checks that JAX finds devices; in a run of several processes, once they have met.

  Raises:
    UserError: JAX_PLATFORMS names platforms of which there is none; names those that there are.
  """
  wanted = jax.config.jax_platforms
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # The latter has no text: 'cuda' without one.
    if not wanted:
      raise
    jax.extend.backend.clear_backends()
    jax.config.update('jax_platforms', None)
    reason = str(error).partition(' (set JAX_PLATFORMS')[0].rstrip('.')
    reason = reason or f'no {wanted} device is here'
    raise UserError(
      f'JAX_PLATFORMS={wanted}: {reason}. Here are: {", ".join(jax.extend.backend.backends())}; '
      'without JAX_PLATFORMS the best of them is taken.'
    ) from error
