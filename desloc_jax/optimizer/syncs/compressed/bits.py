"""Small whole numbers and floats as the bytes that travel."""

import math

import jax
import jax.numpy as jnp


def packed_bytes(count: int, bits: int) -> int:
  """Returns how many bytes `pack` makes of `count` numbers."""
  group = _group(bits)
  return math.ceil(count / group) * group * bits // 8


def pack(numbers: jax.Array, bits: int) -> jax.Array:
  """Packs whole numbers in [0, 2^bits) densely: [..., count] -> uint8 [..., bytes].

  Args:
    numbers: of any integer dtype.
    bits: of a number: 1, 2, 4, 8, 12 or 16.
  """
  group = _group(bits)
  numbers = _pad_last(numbers.astype(jnp.uint32), group)
  words = numbers.reshape(*numbers.shape[:-1], -1, group) << (bits * jnp.arange(group)).astype(
    jnp.uint32
  )
  words = words.sum(axis=-1, dtype=jnp.uint32)  # No two share a bit.
  places = (8 * jnp.arange(group * bits // 8)).astype(jnp.uint32)
  parts = (words[..., None] >> places).astype(jnp.uint8)
  return parts.reshape(*parts.shape[:-2], -1)


def unpack(packed: jax.Array, bits: int, count: int) -> jax.Array:
  """The inverse of `pack`: uint8 [..., bytes] -> uint32 [..., count]."""
  group = _group(bits)
  size = group * bits // 8
  parts = packed.reshape(*packed.shape[:-1], -1, size).astype(jnp.uint32)
  words = (parts << (8 * jnp.arange(size)).astype(jnp.uint32)).sum(axis=-1, dtype=jnp.uint32)
  numbers = words[..., None] >> (bits * jnp.arange(group)).astype(jnp.uint32)
  numbers &= 2**bits - 1
  return numbers.reshape(*numbers.shape[:-2], -1)[..., :count]


def to_bytes(x: jax.Array, dtype=jnp.float32) -> jax.Array:
  """Returns the bytes of floats in `dtype`: [..., count] -> uint8 [..., bytes]."""
  parts = jax.lax.bitcast_convert_type(x.astype(dtype), jnp.uint8)
  return parts.reshape(*x.shape[:-1], -1)


def from_bytes(parts: jax.Array, dtype=jnp.float32) -> jax.Array:
  """The inverse of `to_bytes`: uint8 [..., bytes] -> [..., count] of `dtype`."""
  parts = parts.reshape(*parts.shape[:-1], -1, jnp.dtype(dtype).itemsize)
  return jax.lax.bitcast_convert_type(parts, dtype)


def _group(bits: int) -> int:
  """Returns how many numbers fill whole bytes together."""
  if bits not in (1, 2, 4, 8, 12, 16):
    raise ValueError(f'numbers of {bits} bits cannot be packed; expected 1, 2, 4, 8, 12 or 16.')
  return math.lcm(bits, 8) // bits


def _pad_last(x: jax.Array, multiple: int) -> jax.Array:
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % multiple)])
