"""What devices can do, and how much memory was used."""

import resource
import sys

import jax

# Dense bfloat16 operations a second, in 1e12, by the makers' data sheets; a part of `device_kind`,
# the first that is in it.
_PEAK_TFLOPS = {
  'H100 PCIe': 756.0, 'H100': 989.0, 'H200': 989.0, 'B200': 2250.0, 'A100': 312.0,
  'TPU v4': 275.0, 'TPU v5 lite': 197.0, 'TPU v5e': 197.0, 'TPU v5': 459.0, 'TPU v6': 918.0,
}  # fmt: skip


def peak_flops(device_kind: str) -> float | None:
  """Returns the bfloat16 operations a second of a kind of device; None: not known, as of CPUs."""
  known = [tflops for part, tflops in _PEAK_TFLOPS.items() if part in device_kind]
  return known[0] * 1e12 if known else None


def peak_memory_bytes() -> int:
  """Returns the peak of the first device's memory, or of this process where that is not known."""
  stats = jax.local_devices()[0].memory_stats() or {}
  unit = 1 if sys.platform == 'darwin' else 1024
  host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  return stats.get('peak_bytes_in_use', host)
