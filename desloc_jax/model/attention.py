"""Causal attention in blocks of queries, with a derivative of its own: how CPUs do it best.

Heads lie before positions, as the matmuls there want them; keys that no query of a block may see are
left out, nearly half of all; and each operand of the backward pass is made once. The probabilities
of all blocks are held for it.

B: sequences, L: queries, S: keys, K: head dimension, H: heads, G: heads of keys and values,
R: heads of queries that share one of them.
"""

import functools
import math

import jax
import jax.numpy as jnp

from desloc_jax.model.product import made_once

_MOST_BLOCKS = 4
_LEAST_QUERIES = 64  # In a block: matmuls of fewer rows are slower.


def attend_in_blocks(
  q_BxHxLxK: jax.Array, k_BxGxLxK: jax.Array, v_BxGxLxK: jax.Array, sees: jax.Array | None
) -> jax.Array:
  """Returns causal attention [B, H, L, K] in the dtype of its operands; the softmax is float32.

  Args:
    q_BxHxLxK: queries.
    k_BxGxLxK: keys, each for H / G neighbouring heads of queries.
    v_BxGxLxK: values.
    sees: boolean [B, 1, L, L], what a query may see of that which is not after it; None: all.
  """
  batch, heads, length, size = q_BxHxLxK.shape
  key_heads = k_BxGxLxK.shape[1]
  q_BxGxRxLxK = q_BxHxLxK.reshape(batch, key_heads, heads // key_heads, length, size)
  sees = None if sees is None else sees[:, :, None]
  return _attend(q_BxGxRxLxK / math.sqrt(size), k_BxGxLxK, v_BxGxLxK, sees).reshape(q_BxHxLxK.shape)


def _blocks(length: int) -> list[slice]:
  """Returns the rows of each block."""
  count = max(1, min(_MOST_BLOCKS, length // _LEAST_QUERIES))
  rows = -(-length // count)
  return [slice(start, min(start + rows, length)) for start in range(0, length, rows)]


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _attend(q, k, v, sees):
  return _forward(q, k, v, sees)[0]


def _forward(q, k, v, sees):
  outs, probabilities = [], []
  for rows in _blocks(q.shape[-2]):
    seen = slice(rows.stop)
    scores = _einsum('bgrlk,bgsk->bgrls', q[..., rows, :], k[..., seen, :])
    mask = jnp.arange(rows.stop) <= jnp.arange(rows.start, rows.stop)[:, None]
    if sees is not None:
      mask &= sees[..., rows, seen]
    p = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)).astype(q.dtype)
    outs.append(_einsum('bgrls,bgsk->bgrlk', p, v[..., seen, :]).astype(q.dtype))
    probabilities.append(p)
  out = jnp.concatenate(outs, axis=-2)
  return out, (q, k, v, out, probabilities)


def _backward(kept, gradient):
  q, k, v, out, probabilities = kept
  gradient = made_once(gradient)
  # Of each query: what the softmax takes from the gradient of all of its scores.
  mean = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1, keepdims=True)
  dq, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  for rows, p in zip(_blocks(q.shape[-2]), probabilities, strict=True):
    seen = slice(rows.stop)
    dp = _einsum('bgrlk,bgsk->bgrls', gradient[..., rows, :], v[..., seen, :])
    dscores = made_once((p * (dp - mean[..., rows, :])).astype(q.dtype))
    dq.append(_einsum('bgrls,bgsk->bgrlk', dscores, k[..., seen, :]).astype(q.dtype))
    dk = dk.at[..., seen, :].add(_einsum('bgrls,bgrlk->bgsk', dscores, q[..., rows, :]))
    dv = dv.at[..., seen, :].add(_einsum('bgrls,bgrlk->bgsk', p, gradient[..., rows, :]))
  return jnp.concatenate(dq, axis=-2), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
