"""The largest differences of each chunk, with error feedback."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.syncs.compressed.bits import (
  from_bytes,
  pack,
  packed_bytes,
  to_bytes,
  unpack,
)
from desloc_jax.optimizer.syncs.compressed.channels import to_everybody
from desloc_jax.optimizer.syncs.compressed.encodings import Encoding
from desloc_jax.optimizer.syncs.compressed.feedback import with_feedback
from desloc_jax.optimizer.syncs.sync import Sync

AVERAGES = ('senders', 'all')  # Of a coordinate: over the workers that sent it, or all there are.


def topk(
  keep: int = 64, chunk: int = 4096, bits: int = 2, decay: float = 0.95, average: str = 'senders'
) -> Sync:
  r"""Sends the few largest accumulated differences, in a hundredth of the bytes.

  With :math:`C` the encoding of `largest`, and :math:`D_m = X - x_m`:

  .. math::
    e_m \leftarrow \beta e_m + D_m, \quad s_m = C(e_m), \quad e_m \leftarrow e_m - s_m, \quad
    X \leftarrow X - \frac{\sum_m s_m}{n}

  where :math:`n`, for each coordinate, is how many workers sent it, or how many there are. At a
  sync a worker sends `keep` indices and codes and a code book for each chunk, 128 bytes with the
  defaults, to every other one.

  Args:
    keep: coordinates of a chunk that are sent.
    chunk: coordinates of a chunk, at most 65536.
    bits: of a value: 2, 4 or 8; 32: as it is.
    decay: of the memory, beta; 0: no memory.
    average: over the 'senders' of a coordinate, as in large runs, or over 'all', as in the paper.

  Returns:
    A `Sync` for a quantity that has a reference: the parameters, or a moment inside `anchored`.

  Raises:
    ValueError: an argument is out of range; at the first sync, if there is no reference.

  References:
    Sarfi et al., `SparseLoCo <https://arxiv.org/abs/2508.15706>`_, 2025
  """
  if average not in AVERAGES:
    raise ValueError(f'average is {average!r}; expected {" or ".join(map(repr, AVERAGES))}.')
  channel = to_everybody(largest(keep, chunk, bits), senders_only=average == 'senders')
  return with_feedback(channel, decay, needs_reference=True)


def largest(keep: int = 64, chunk: int = 4096, bits: int = 2) -> Encoding:
  r"""The `keep` largest by magnitude of each chunk; what is not kept decodes to zero.

  With :math:`m` and :math:`\sigma` the mean and deviation of the values that are kept:

  .. math::
    q_i = \mathrm{clip}\Big(\Big\lfloor \frac{2^b (x_i - m)}{6 \sigma} \Big\rfloor + 2^{b-1}, 0,
    2^b - 1\Big)

  and a code stands for the mean of the values that have it: the code book, sent in float32.

  Args:
    keep: how many of a chunk are sent.
    chunk: numbers of a chunk, at most 65536.
    bits: of a value, b: 2, 4 or 8; 32: as it is.
  """
  if not 1 <= keep <= chunk <= 2**16 or bits not in (2, 4, 8, 32):
    raise ValueError(
      f'cannot keep {keep} of {chunk} in {bits} bits: expected 1 <= keep <= chunk <= 65536, '
      'and 2, 4, 8 or 32 bits.'
    )
  place_bits = next(b for b in (1, 2, 4, 8, 12, 16) if chunk <= 2**b)
  place_bytes = packed_bytes(keep, place_bits)
  levels = 2**bits

  def encode(x):
    places = jax.lax.top_k(jnp.abs(x), keep)[1]
    values = jnp.take_along_axis(x, places, axis=-1)
    message = to_bytes(values) if bits == 32 else write_values(values)
    return jnp.concatenate([pack(places, place_bits), message], axis=-1)

  def write_values(values):
    centre = values.mean(axis=-1, keepdims=True)
    width = 6 * jnp.sqrt(((values - centre) ** 2).mean(axis=-1, keepdims=True)) / levels
    bins = jnp.floor((values - centre) / jnp.where(width > 0, width, 1)) + levels // 2
    codes = jnp.clip(bins, 0, levels - 1).astype(jnp.int32)
    holds = codes[..., None] == jnp.arange(levels)  # [..., keep, levels]
    sums = jnp.where(holds, values[..., None], 0).sum(axis=-2)
    book = sums / jnp.maximum(holds.sum(axis=-2), 1)
    return jnp.concatenate([to_bytes(book), pack(codes, bits)], axis=-1)

  def read_values(message, dtype):
    if bits == 32:
      return from_bytes(message).astype(dtype)
    book = from_bytes(message[..., : 4 * levels]).astype(dtype)
    return jnp.take_along_axis(book, unpack(message[..., 4 * levels :], bits, keep), axis=-1)

  def decode(rows, dtype):
    places = unpack(rows[..., :place_bytes], place_bits, keep)
    values = read_values(rows[..., place_bytes:], dtype)
    return jnp.put_along_axis(
      jnp.zeros((*rows.shape[:-1], chunk), dtype), places, values, axis=-1, inplace=False
    )

  return Encoding(chunk, encode, decode)
