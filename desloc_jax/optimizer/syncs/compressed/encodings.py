"""Encodings: blocks of numbers as rows of bytes, scales and all, so that what travels is exact."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.syncs.compressed.bits import from_bytes, pack, to_bytes, unpack

# A block's values below 2^-24 of its largest one would be lost in a float32 sum with it too.
OCTAVES = 24


class Encoding(NamedTuple):
  """A way to write `block` numbers at a time."""

  block: int
  encode: Callable[[jax.Array], jax.Array]  # [..., block] -> uint8 [..., bytes]
  decode: Callable[
    [jax.Array, jnp.dtype], jax.Array
  ]  # uint8 [..., bytes] -> [..., block] of a dtype
  positive: bool = False  # Whether it is for numbers >= 0 only.


def floats(dtype, block: int = 256) -> Encoding:
  """Each number as a float of `dtype`, rounded to nearest."""
  return Encoding(
    block=block,
    encode=functools.partial(to_bytes, dtype=dtype),
    decode=lambda rows, wide: from_bytes(rows, dtype).astype(wide),
  )


def uniform(bits: int, block: int = 256) -> Encoding:
  r"""Whole multiples of a scale of the block's own, which is sent in float32.

  .. math::
    s = \frac{\max_i |x_i|}{2^{b-1} - 1}, \quad q_i = \mathrm{round}(x_i / s)

  Args:
    bits: of a number, b: 4 or 8; for 2 see `four_levels`.
    block: numbers that share a scale.
  """
  _check_bits(bits, 4, 8)
  most = 2 ** (bits - 1) - 1

  def encode(x):
    scale = (jnp.abs(x).max(axis=-1, keepdims=True) / most).astype(jnp.float32)
    quotients = x / jnp.where(scale > 0, scale, 1)
    codes = jnp.clip(jnp.round(quotients), -most, most).astype(jnp.int32) + most
    return jnp.concatenate([to_bytes(scale), pack(codes, bits)], axis=-1)

  def decode(rows, dtype):
    scale = from_bytes(rows[..., :4]).astype(dtype)
    return (unpack(rows[..., 4:], bits, block).astype(jnp.int32) - most).astype(dtype) * scale

  return Encoding(block, encode, decode)


def four_levels(block: int = 256) -> Encoding:
  r"""Two bits: a sign, and whether a number is large among those of its block.

  .. math::
    s = \frac54 \frac1n \sum_i |x_i|, \quad
    q_i = \mathrm{clip}(\lfloor x_i / s \rfloor, -2, 1) + \tfrac12

  The spacing is the best for normal numbers. Whatever they are, the error is smaller than x: its
  square is at most :math:`\|x\|^2 - 0.85 n (\mathrm{mean} |x|)^2`. The largest number as scale, as
  in `uniform`, would make zeros of most.

  Args:
    block: numbers that share a scale, which is sent in float32.
  """

  def encode(x):
    scale = (1.25 * jnp.abs(x).mean(axis=-1, keepdims=True)).astype(jnp.float32)
    levels = jnp.floor(x / jnp.where(scale > 0, scale, 1))
    codes = (jnp.clip(levels, -2, 1) + 2).astype(jnp.int32)
    return jnp.concatenate([to_bytes(scale), pack(codes, 2)], axis=-1)

  def decode(rows, dtype):
    scale = from_bytes(rows[..., :4]).astype(dtype)
    return (unpack(rows[..., 4:], 2, block).astype(dtype) - 1.5) * scale

  return Encoding(block, encode, decode)


def logarithmic(bits: int, block: int = 256) -> Encoding:
  r"""Numbers >= 0 by their logarithms, for second moments, which span decades.

  A number that is not zero never becomes zero: Adam would divide by it.

  .. math::
    y_i = \log_2 x_i, \quad d = \frac{\max y - \min y}{2^b - 2}, \quad
    q_i = 1 + \mathrm{round}\Big(\frac{y_i - \min y}{d}\Big), \quad q_i = 0 \text{ if } x_i = 0

  Least and step are sent in float32; the least is at most 24 octaves below the largest, and what is
  smaller is raised to it.

  Args:
    bits: of a number, b: 2, 4 or 8.
    block: numbers that share a range.
  """
  _check_bits(bits, 2, 4, 8)
  steps = 2**bits - 2

  def encode(x):
    present = x >= jnp.finfo(jnp.float32).tiny
    y = jnp.log2(jnp.where(present, x, 1))
    largest = jnp.where(present, y, -jnp.inf).max(axis=-1, keepdims=True)
    least = jnp.where(present, y, jnp.inf).min(axis=-1, keepdims=True)
    none = jnp.isinf(largest)
    largest, least = jnp.where(none, 0, largest), jnp.where(none, 0, least)
    least = jnp.maximum(least, largest - OCTAVES).astype(jnp.float32)
    step = ((largest - least) / steps).astype(jnp.float32)
    codes = jnp.round((y - least) / jnp.where(step > 0, step, 1))
    codes = jnp.where(present, 1 + jnp.clip(codes, 0, steps), 0).astype(jnp.int32)
    return jnp.concatenate([to_bytes(least), to_bytes(step), pack(codes, bits)], axis=-1)

  def decode(rows, dtype):
    least, step = (from_bytes(rows[..., i : i + 4]).astype(dtype) for i in (0, 4))
    codes = unpack(rows[..., 8:], bits, block).astype(dtype)
    return jnp.where(codes > 0, jnp.exp2(least + (codes - 1) * step), 0)

  return Encoding(block, encode, decode, positive=True)


def _check_bits(bits: int, *choices: int) -> None:
  if bits not in choices:
    raise ValueError(f'{bits} bits for a number; expected {", ".join(map(str, choices))}.')
