"""Rotary positions: RoFormer, https://arxiv.org/abs/2104.09864, equation 15."""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp


def rope_tables(
  length: int, head_dim: int, base: float, scaling: Sequence[float] = ()
) -> tuple[jax.Array, jax.Array]:
  """Returns float32 (cos, sin), each [length, head_dim / 2], of the angles position * frequency.

  Args:
    length: positions, from 0.
    head_dim: numbers of a head, turned in pairs.
    base: of the frequencies.
    scaling: of `scale_frequencies`; empty: none.
  """
  frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  if scaling:
    frequencies = scale_frequencies(frequencies, *scaling)
  angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def scale_frequencies(
  frequencies: jax.Array, factor: float, low: float, high: float, positions: float
) -> jax.Array:
  """Returns frequencies of which the low ones are divided by `factor`, as Llama 3.1 has them.

  Those that turn less than `low` times in `positions` are divided, those that turn more than `high`
  times stay, and between them is an even passage.

  Source: https://github.com/meta-llama/llama-models, models/llama3/model.py, apply_scaling.
  """
  turns = positions * frequencies / (2 * math.pi)
  kept = jnp.clip((turns - low) / (high - low), 0, 1)
  return (1 - kept) * frequencies / factor + kept * frequencies


def apply_rope(
  x: jax.Array, rope: tuple[jax.Array, jax.Array], heads_first: bool = False
) -> jax.Array:
  """Returns x with the pairs (i, i + K/2) of each head turned by their angle; x's dtype is kept.

  Args:
    x: [B, L, H, K], or [B, H, L, K] if `heads_first`.
    rope: from `rope_tables`.
    heads_first: see `x`.
  """
  cos, sin = rope if heads_first else (table[:, None, :] for table in rope)
  first, second = jnp.split(x, 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)
