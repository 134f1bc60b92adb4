"""A CPU device of each process that is set aside: it exchanges while the others make steps.

Programs of different devices don't wait for each other, and collectives over different devices
don't share connections. So an exchange on devices of its own hides behind the steps, and no other
collective, of a log line or an evaluation, can meet it on its way.
"""

from collections.abc import Sequence
import os
import re

import jax

from desloc_jax.errors import UserError

_is_set = False


def set_aside() -> None:
  """Asks for one CPU device more than there would be; before JAX has its devices.

  Raises:
    UserError: JAX has its devices already, or may have no CPU among them.
  """
  global _is_set
  if _is_set:
    return
  platforms = [name for name in (jax.config.jax_platforms or 'cpu').split(',') if name]
  if 'cpu' not in platforms:
    raise UserError(
      f'sync.behind exchanges on CPU devices, which JAX_PLATFORMS={jax.config.jax_platforms} leaves '
      f'out; set JAX_PLATFORMS={jax.config.jax_platforms},cpu.'
    )
  try:
    jax.config.update('jax_num_cpu_devices', virtual_devices() + 1)
  except RuntimeError as error:
    raise UserError(
      'sync.behind needs a CPU device of its own, and JAX has its devices already; begin the run in '
      'a process that has not used JAX before.'
    ) from error
  _is_set = True


def virtual_devices() -> int:
  """Returns how many CPU devices this process asks for, by JAX's option or XLA's flag."""
  if jax.config.jax_num_cpu_devices >= 0:
    return jax.config.jax_num_cpu_devices
  flags = re.findall(r'host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', ''))
  return int(flags[-1]) if flags else 1


def devices_aside() -> int:
  """Returns how many CPU devices of this process make no steps."""
  return int(_is_set)


def step_devices() -> Sequence[jax.Device]:
  """Returns the devices of all processes that make steps."""
  devices = jax.devices()
  aside = {device.id for device in exchange_devices()} if _is_set else set()
  return [device for device in devices if device.platform != 'cpu' or device.id not in aside]


def exchange_devices() -> Sequence[jax.Device]:
  """Returns the device of each process that was set aside, in the order of the processes."""
  last = {device.process_index: device for device in jax.devices('cpu')}
  return [last[index] for index in sorted(last)]


def first_devices() -> Sequence[jax.Device]:
  """Returns a device of each process that makes steps, in the order of the processes."""
  first = {device.process_index: device for device in reversed(step_devices())}
  return [first[index] for index in sorted(first)]
