"""Variables of the environment that tests run in, and the processes that they start.

XLA optimises little there, because a test compiles for longer than it runs; the suite takes 1.6 times
as long with what users have (on jaxlib 0.10; newer ones do not know the last flag):

  XLA_FLAGS='--xla_backend_optimization_level=3 --xla_llvm_disable_expensive_passes=false \\
    --xla_cpu_use_fusion_emitters=true' python -m pytest
"""

from importlib import metadata
import os

_QUICK = ['--xla_backend_optimization_level=0', '--xla_llvm_disable_expensive_passes=true']
if metadata.version('jaxlib').startswith('0.10.'):  # An unknown flag would end the process.
  _QUICK.append('--xla_cpu_use_fusion_emitters=false')
# Of two values of a flag the last counts.
_FLAGS = ' '.join([*_QUICK, os.environ.get('XLA_FLAGS', '')])


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
  """Returns the environment of a process with so many virtual CPU devices."""
  flags = f'{_FLAGS} --xla_force_host_platform_device_count={devices}'
  # As `give_threads_to_collectives` does for a run: here the devices are there before.
  threads = {'NPROC': str(4 * devices)} if devices > 1 else {}
  inherited = {name: value for name, value in os.environ.items() if name != 'NPROC'}
  return inherited | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags} | threads | variables
