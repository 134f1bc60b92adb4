"""A decoder-only transformer: RMSNorm, rotary positions, causal attention, a SiLU MLP that may be
gated, embeddings that are tied unless the config says otherwise, and no biases.

Shapes are in the names, as in https://github.com/google-deepmind/nanodo:

  B: sequences, L: tokens in a sequence, D: width, V: vocabulary, F: hidden size of the MLP
  H: heads, G: heads of keys and values, K: head dimension, S: positions that a cache has room for

The parameters of the blocks are stacked on a leading axis of length `layers` and the blocks run as
one scan, so that the time to compile does not grow with depth. The whole tree, all of it float32:

  embedding                [V, D]             input lookup, and output projection if tied
  output_embedding         [V, D]             output projection if not tied
  blocks/attention_norm/scale    [layers, D]
  blocks/qkv/kernel              [layers, D, (H + 2G) K]
  blocks/query_norm/scale        [layers, K]        only with qk_norm
  blocks/key_norm/scale          [layers, K]        only with qk_norm
  blocks/attention_out/kernel    [layers, H K, D]
  blocks/mlp_norm/scale          [layers, D]
  blocks/mlp_gate/kernel         [layers, D, F]     only with mlp 'gated'
  blocks/mlp_up/kernel           [layers, D, F]
  blocks/mlp_down/kernel         [layers, F, D]
  final_norm/scale         [D]
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from desloc_jax import errors
from desloc_jax.model.block import Block, CACHE, INIT_STDDEV, Positions, with_remat
from desloc_jax.model.choices import unrolls
from desloc_jax.model.gpt_config import GPTConfig
from desloc_jax.model.rope import rope_tables
from desloc_jax.model.splitting import over_batch_parts

Params = dict[str, Any]

METRICS, ACTIVATION_NORM = 'metrics', 'activation_norm'  # What `GPT` sows besides its result.


def init_params(config: GPTConfig, key: jax.Array) -> Params:
  """Returns fresh float32 parameters, the tree that the module docstring lists."""
  # Only shapes matter here, so no attention kernel is asked for one token, which it may not take.
  config = dataclasses.replace(config, attention='xla')
  return GPT(config).init(key, jnp.zeros((1, 1), jnp.int32))['params']


def empty_cache(config: GPTConfig, batch: int) -> Params:
  """Returns room for the keys and values of `batch` sequences of `seq_len` tokens, for `GPT`."""
  shape = (config.layers, batch, config.seq_len, config.key_heads, config.head_dim)
  return {'blocks': {name: jnp.zeros(shape, config.dtype) for name in ('keys', 'values')}}


def logits(params: Params, hidden_BxLxD: jax.Array) -> jax.Array:
  """Returns float32 scores [B, L, V] of each next token, from what `GPT` returns.

  The operands are in the dtype of `hidden_BxLxD`, the sums in float32. This holds every score at
  once: `loss.token_losses` does not, and is the one to train with.
  """
  return scores(hidden_BxLxD, output_embedding(params).astype(hidden_BxLxD.dtype))


def output_embedding(params: Params) -> jax.Array:
  """Returns float32 [V, D], what hidden states are multiplied with for the scores."""
  return params.get('output_embedding', params['embedding'])


def root_mean_square(x: jax.Array) -> jax.Array:
  """Returns the root of the mean square of all of x, a float32 scalar without a gradient."""
  return jnp.sqrt(jnp.mean(jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32))))


def scores(hidden_BxLxD: jax.Array, embedding_VxD: jax.Array) -> jax.Array:
  """Returns float32 [B, L, V]: hidden states against an embedding of the same dtype."""
  return jnp.einsum('bld,vd->blv', hidden_BxLxD, embedding_VxD, preferred_element_type=jnp.float32)


class GPT(nn.Module):
  """Tokens to final hidden states."""

  config: GPTConfig

  @nn.compact
  def __call__(self, tokens_BxL: jax.Array, start: jax.Array | None = None) -> jax.Array:
    """Returns the normalised hidden states [B, L, D] in the compute dtype.

    Args:
      tokens_BxL: integers in [0, vocab_size). One above that range gives NaN, from its position on.
      start: to read on, the tokens of each sequence that were read before, whose keys and values are
        in the collection `CACHE`, which must be mutable: these tokens join them. At most
        `seq_len - L`; more is not noticed. All are of one document.

    Raises:
      errors.UserError: the sequences are longer than `config.seq_len`, or `config.attention` is
        'cudnn' and there is no GPU.
    """
    config, length = self.config, tokens_BxL.shape[1]
    if length > config.seq_len:
      raise errors.UserError(f'tokens have {length} positions: seq_len is {config.seq_len}.')
    embedding_VxD = self.param(
      'embedding', nn.initializers.normal(INIT_STDDEV), (config.vocab_size, config.width)
    )
    if not config.tie_embeddings:
      self.param('output_embedding', nn.initializers.normal(INIT_STDDEV), embedding_VxD.shape)
    x_BxLxD = look_up(embedding_VxD, tokens_BxL, config.dtype)
    unrolled = unrolls(config) and not self.is_initializing()
    blocks = nn.scan(
      with_remat(Block, config.remat),
      variable_axes={'params': 0, CACHE: 0},
      split_rngs={'params': True},
      in_axes=nn.broadcast,
      length=config.layers,
      unroll=config.layers if unrolled else 1,
    )(config, name='blocks')
    x_BxLxD, _ = blocks(x_BxLxD, self._positions(tokens_BxL, start))
    self.sow(METRICS, ACTIVATION_NORM, root_mean_square(x_BxLxD))
    return nn.RMSNorm(config.norm_eps, config.dtype, name='final_norm')(x_BxLxD)

  def _positions(self, tokens_BxL: jax.Array, start: jax.Array | None) -> Positions:
    config, length = self.config, tokens_BxL.shape[1]
    known = length if start is None else config.seq_len
    rope = rope_tables(known, config.head_dim, config.rope_base, config.rope_scaling)
    if start is not None:
      rope = tuple(jax.lax.dynamic_slice_in_dim(table, start, length) for table in rope)
    sees = None
    if config.document_end >= 0:  # Distances are all that positions tell, so they go on.
      document_BxL = jnp.cumsum(tokens_BxL == config.document_end, axis=1)
      sees = (document_BxL[:, :, None] == document_BxL[:, None, :])[:, None]
    return Positions(rope, start, sees)


def look_up(embedding_VxD: jax.Array, tokens_BxL: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Returns the embeddings [B, L, D] of tokens in `dtype`."""

  # Looked up before the cast: the gradient of a lookup is a sum over repeats of a token, and so
  # it is taken in float32.
  def of_part(embedding_VxD, tokens_BxL):
    return jnp.take(embedding_VxD, tokens_BxL, axis=0).astype(dtype)

  return over_batch_parts(of_part, embedding_VxD, tokens_BxL)
