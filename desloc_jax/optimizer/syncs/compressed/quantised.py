"""Means of numbers in few bits."""

import jax.numpy as jnp

from desloc_jax.optimizer.syncs.compressed.channels import in_slices
from desloc_jax.optimizer.syncs.compressed.encodings import (
  Encoding,
  floats,
  four_levels,
  logarithmic,
  uniform,
)
from desloc_jax.optimizer.syncs.compressed.feedback import with_feedback
from desloc_jax.optimizer.syncs.sync import Sync


def quantised(
  bits: int = 8, block: int = 256, decay: float = 0.9, logarithms: bool = False
) -> Sync:
  r"""Averages differences in a half, a quarter, an eighth or a sixteenth of the bytes.

  With :math:`C` the encoding in `bits`, and :math:`D_m = X - x_m` (or, for a quantity without a
  reference, its own value):

  .. math::
    z_m = D_m + e_m, \quad s_m = C(z_m), \quad \bar z = C\Big(\frac1W \sum_m s_m\Big), \quad
    e_m \leftarrow \beta (z_m - s_m), \quad X \leftarrow X - \bar z

  The sum is in float32. The error of the second :math:`C` goes into the memory of the worker that
  made it, so that over time nothing is lost. With 32 bits and no reference it is the mean, bit for
  bit; with a reference to within rounding, as `X - (X - x)` is not `x`.

  Args:
    bits: of a number: 32 (float32), 16 (bfloat16), 8 or 4 (whole multiples of a block's scale), or
      2 (`four_levels`).
    block: numbers that share a scale.
    decay: of the memory, beta; 0: plain rounding.
    logarithms: whether to encode 8 bits and fewer as logarithms, and to take back what was sent in
      excess only so far that nothing becomes negative: for second moments, which span decades.

  Returns:
    A `Sync` whose memory is one float32 copy of the quantity a worker.

  Raises:
    ValueError: an argument is out of range.

  References:
    Thérien et al., `MuLoCo <https://arxiv.org/abs/2505.23725>`_, 2025; Tang et al., `1-bit Adam
    <https://arxiv.org/abs/2102.02888>`_, 2021, for the second error
  """
  return with_feedback(in_slices(encoding(bits, block, logarithms)), decay)


def encoding(bits: int, block: int = 256, logarithms: bool = False) -> Encoding:
  """Returns the encoding of `quantised`."""
  if bits not in (32, 16, 8, 4, 2):
    raise ValueError(f'{bits} bits for a number; expected 32, 16, 8, 4 or 2.')
  if bits in (16, 32):
    dtype = jnp.float32 if bits == 32 else jnp.bfloat16
    return floats(dtype, block)._replace(positive=logarithms)
  if logarithms:
    return logarithmic(bits, block)
  return four_levels(block) if bits == 2 else uniform(bits, block)
