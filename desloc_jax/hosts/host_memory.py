"""CPU devices: memory that a step frees stays with the process, for the next step."""

import ctypes

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # It refuses more.
_NEVER = -1


def keep_freed_memory() -> bool:
  """Lets blocks of up to 32 MiB stay with the process when they are freed, in the main heap.

  XLA allocates the temporaries of a step anew, on CPUs by malloc. Whether glibc then asks the kernel
  for pages each time depends on how a process' heap happens to lie: of processes of one run some have
  none and others hundreds of page faults a step, and at each average all wait for those. Larger
  blocks come from the kernel as before, and emptied heaps of other threads go back to it.

  Returns:
    Whether it did: other C libraries do not have that.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # macOS, musl; Windows.
    return False
  return bool(
    mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _NEVER)
  )
