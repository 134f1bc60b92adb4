"""Variables of the environment that tests run in, and the processes that they start."""

from importlib import metadata
import os

# A test compiles for longer than it runs: twice as long with XLA's own choices.
_QUICK = ['--xla_backend_optimization_level=0', '--xla_llvm_disable_expensive_passes=true']
if metadata.version('jaxlib').startswith('0.10.'):  # An unknown flag would end the process.
  _QUICK.append('--xla_cpu_use_fusion_emitters=false')
# What was given counts, as it comes after.
_FLAGS = ' '.join([*_QUICK, os.environ.get('XLA_FLAGS', '')])


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
  """Returns the environment of a process with so many virtual CPU devices."""
  flags = f'{_FLAGS} --xla_force_host_platform_device_count={devices}'
  return os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags} | variables
