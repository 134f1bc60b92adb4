"""Attention in blocks of queries, against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from desloc_jax.model.attention import attend_in_blocks


def reference(q, k, v, sees, gradient):
  """Returns attention and the gradients of q, k and v, in float64."""
  q, k, v, gradient = (np.asarray(x, np.float64) for x in (q, k, v, gradient))
  shared = q.shape[1] // k.shape[1]
  keys, values = (np.repeat(x, shared, axis=1) for x in (k, v))
  length, size = q.shape[-2:]
  scores = q @ keys.swapaxes(2, 3) / np.sqrt(size)
  seen = np.tril(np.ones((length, length), bool)) & (True if sees is None else np.asarray(sees))
  p = np.exp(np.where(seen, scores, -np.inf))
  p /= p.sum(-1, keepdims=True)
  dp = gradient @ values.swapaxes(2, 3)
  dscores = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(size)
  of_group = lambda x: x.reshape(len(x), -1, shared, length, size).sum(2)
  return (
    p @ values,
    dscores @ keys,
    of_group(dscores.swapaxes(2, 3) @ q),
    of_group(p.swapaxes(2, 3) @ gradient),
  )


@pytest.mark.parametrize(
  'length, key_heads, documents, dtype, tolerance',
  [
    (5, 4, False, 'float32', 1e-5),
    (131, 2, True, 'float32', 1e-5),  # Two blocks, the last one shorter.
    (256, 4, True, 'float32', 1e-5),
    (131, 1, True, 'bfloat16', 4e-2),
  ],
)
def test_values_and_gradients_are_those_of_the_formula(
  length, key_heads, documents, dtype, tolerance
):
  keys = jax.random.split(jax.random.key(0), 5)
  shapes = [(2, heads, length, 8) for heads in (4, key_heads, key_heads, 4)]
  draw = lambda key, shape: jax.random.normal(key, shape, dtype)
  q, k, v, gradient = map(draw, keys[:4], shapes)
  sees = None
  if documents:
    document = jnp.cumsum(jax.random.bernoulli(keys[4], 0.1, (2, length)), axis=1)
    sees = (document[:, :, None] == document[:, None, :])[:, None]

  @jax.jit
  def ours(q, k, v, gradient):
    out, pull = jax.vjp(lambda *qkv: attend_in_blocks(*qkv, sees), q, k, v)
    return out, *pull(gradient)

  found = ours(q, k, v, gradient)
  for array, exact in zip(found, reference(q, k, v, sees, gradient), strict=True):
    assert array.dtype == jnp.dtype(dtype)
    error = np.abs(np.asarray(array, np.float64) - exact).max()
    assert error <= tolerance * np.abs(exact).max()
