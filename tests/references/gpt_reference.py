"""A small GPT, the paper's sizes, and the model and its loss in NumPy, float64.

The reference is written from the formulas and shares no code with the model.
"""

import functools
import math

import jax
import jax.extend.core
import numpy as np

from desloc_jax import model

TINY = model.GPTConfig(
  vocab_size=61, layers=2, width=32, heads=4, seq_len=24, loss_chunk=20, attention='xla'
)

# The sizes of the paper: (nominal millions, layers, width, heads, millions with the embedding).
# '1B' and '135M' leave their nominal size by more than rounding: see the tolerances of the test.
SIZES = {
  '16M': (16, 4, 256, 4, 16.04),
  '125M': (125, 12, 768, 12, 123.64),
  '135M': (135, 30, 576, 9, 148.49),
  '720M': (720, 12, 2048, 16, 707.19),
  '1B': (1000, 24, 2048, 16, 1311.20),
}


def paper_config(name, **changes):
  _, layers, width, heads, _ = SIZES[name]
  return model.GPTConfig(50_368, layers, width, heads, seq_len=2048, **changes)


def tokens(*shape, seed=0, vocab_size=TINY.vocab_size):
  return jax.random.randint(jax.random.key(seed), shape, 0, vocab_size)


@functools.cache
def params(config):
  """Returns parameters with every scale away from one, so that a dropped scale would show."""
  noise = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x * noise.uniform(0.5, 1.5, x.shape).astype(np.float32),
    jax.jit(functools.partial(model.init_params, config))(jax.random.key(0)),
  )


@functools.cache
def loss_and_grads(config):
  loss = functools.partial(model.next_token_loss, config=config)
  return jax.jit(jax.value_and_grad(loss))(params(TINY), tokens(3, 18))


def reference_norm(x, scale, eps):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def reference_rope(x_BxLxHxK, base):
  length, dim = x_BxLxHxK.shape[1], x_BxLxHxK.shape[-1]
  angles = np.arange(length)[:, None] * base ** (-np.arange(dim // 2) / (dim // 2))
  x = x_BxLxHxK[..., : dim // 2] + 1j * x_BxLxHxK[..., dim // 2 :]
  x = x * np.exp(1j * angles)[:, None]
  return np.concatenate([x.real, x.imag], -1)


def reference_hidden(p, tokens_BxL, config):
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
  x = p['embedding'][np.asarray(tokens_BxL)]
  batch, length, _ = x.shape
  kv_heads, dim, eps = config.kv_heads or config.heads, config.head_dim, config.norm_eps
  silu = lambda x: x / (1 + np.exp(-x))
  for i in range(config.layers):
    block = jax.tree.map(lambda x, i=i: x[i], p['blocks'])
    h = reference_norm(x, block['attention_norm']['scale'], eps) @ block['qkv']['kernel']
    sizes = np.array([config.heads, kv_heads, kv_heads]) * dim
    parts = np.split(h, np.cumsum(sizes)[:-1], axis=-1)
    q, k, v = (part.reshape(batch, length, -1, dim) for part in parts)
    if config.qk_norm:
      q = reference_norm(q, block['query_norm']['scale'], eps)
      k = reference_norm(k, block['key_norm']['scale'], eps)
    q, k = reference_rope(q, config.rope_base), reference_rope(k, config.rope_base)
    k, v = (np.repeat(part, config.heads // kv_heads, axis=2) for part in (k, v))
    scores = np.einsum('bqhk,bshk->bhqs', q, k) / math.sqrt(dim)
    scores = np.exp(np.where(np.tri(length, dtype=bool), scores, -np.inf))
    weights = scores / scores.sum(-1, keepdims=True)
    h = np.einsum('bhqs,bshk->bqhk', weights, v).reshape(batch, length, -1)
    x = x + h @ block['attention_out']['kernel']
    h = reference_norm(x, block['mlp_norm']['scale'], eps)
    up = h @ block['mlp_up']['kernel']
    hidden = silu(h @ block['mlp_gate']['kernel']) * up if config.mlp == 'gated' else silu(up)
    x = x + hidden @ block['mlp_down']['kernel']
  return reference_norm(x, p['final_norm']['scale'], eps)


def reference_losses(hidden_BxLxD, embedding_VxD, targets_BxL):
  """Returns the losses [B, L] and the probabilities less the one-hot targets [B, L, V]."""
  scores = np.asarray(hidden_BxLxD, np.float64) @ np.asarray(embedding_VxD, np.float64).T
  probs = np.exp(scores - scores.max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  one_hot = np.eye(scores.shape[-1])[np.asarray(targets_BxL)]
  return -np.log((probs * one_hot).sum(-1)), probs - one_hot
