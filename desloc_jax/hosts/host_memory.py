"""CPU devices: memory that a step frees stays with the process, for the next step."""

import ctypes
import glob

import jax

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1
# Of NVIDIA, also under Windows' Linux, of AMD, and of Google, by both of its drivers.
_ACCELERATORS = (
  '/dev/nvidia[0-9]*', '/dev/dxg', '/dev/kfd', '/dev/accel[0-9]*', '/dev/vfio/[0-9]*',
)  # fmt: skip


def keep_freed_memory() -> bool:
  """Lets memory stay with the process when it is freed, where CPUs train; before JAX has devices.

  XLA allocates the temporaries of a step anew, on CPUs by malloc, as one block. glibc asks the kernel
  for the pages of a large block each time, or of one that lies at the end of its heap, and the kernel
  fills them with zeros: a fifth of the time of a step of a small model.

  Threads that begin later share one heap, since those of threads hold no large block. A process that
  has an accelerator's memory for its arrays is left alone.

  Returns:
    Whether it did: other C libraries do not have that.
  """
  if not _trains_on_cpus():
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # macOS, musl; Windows.
    return False
  return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _NEVER)])


def _trains_on_cpus() -> bool:
  """Returns whether JAX will take the CPU, without asking it: it would make its threads."""
  if wanted := jax.config.jax_platforms:
    return wanted.split(',')[0] == 'cpu'
  return not any(map(glob.glob, _ACCELERATORS))
