"""A decoder-only transformer: RMSNorm, rotary positions, causal attention, a SiLU MLP,
embeddings that are tied unless the config says otherwise, and no biases.

Shapes are in the names, as in https://github.com/google-deepmind/nanodo:

  B: sequences, L: tokens in a sequence, D: width, H: heads, K: head dimension, V: vocabulary

The parameters of the blocks are stacked on a leading axis of length `layers` and the blocks run as
one scan, so that the time to compile does not grow with depth. The whole tree, all of it float32:

  embedding                [V, D]             input lookup, and output projection if tied
  output_embedding         [V, D]             output projection if not tied
  blocks/attention_norm/scale    [layers, D]
  blocks/qkv/kernel              [layers, D, 3D]
  blocks/query_norm/scale        [layers, K]        only with qk_norm
  blocks/key_norm/scale          [layers, K]        only with qk_norm
  blocks/attention_out/kernel    [layers, D, D]
  blocks/mlp_norm/scale          [layers, D]
  blocks/mlp_up/kernel           [layers, D, mlp_ratio * D]
  blocks/mlp_down/kernel         [layers, mlp_ratio * D, D]
  final_norm/scale         [D]
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.ad_checkpoint
import jax.numpy as jnp

from desloc_jax import errors
from desloc_jax.model.gpt_config import GPTConfig
from desloc_jax.model.splitting import over_batch_parts, split_batch

Params = dict[str, Any]

_INIT_STDDEV = 0.02  # GPT-2; the projections back into the residual stream get less, see `Block`.
_PROJECTION = 'projection'
METRICS, ACTIVATION_NORM = 'metrics', 'activation_norm'  # What `GPT` sows besides its result.


def init_params(config: GPTConfig, key: jax.Array) -> Params:
  """Returns fresh float32 parameters, the tree that the module docstring lists."""
  # Only shapes matter here, so no attention kernel is asked for one token, which it may not take.
  config = dataclasses.replace(config, attention='xla')
  return GPT(config).init(key, jnp.zeros((1, 1), jnp.int32))['params']


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
  def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
    """Returns the normalised hidden states [B, L, D] in the compute dtype.

    Args:
      tokens_BxL: integers in [0, vocab_size). One above that range gives NaN, from its position on.

    Raises:
      errors.UserError: the sequences are longer than `config.seq_len`, or `config.attention` is
        'cudnn' and there is no GPU.
    """
    config, length = self.config, tokens_BxL.shape[1]
    if length > config.seq_len:
      raise errors.UserError(f'tokens have {length} positions: seq_len is {config.seq_len}.')
    embedding_VxD = self.param(
      'embedding', nn.initializers.normal(_INIT_STDDEV), (config.vocab_size, config.width)
    )
    if not config.tie_embeddings:
      self.param('output_embedding', nn.initializers.normal(_INIT_STDDEV), embedding_VxD.shape)
    x_BxLxD = look_up(embedding_VxD, tokens_BxL, config.dtype)
    blocks = nn.scan(
      _remat(Block, config.remat),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=nn.broadcast,
      length=config.layers,
    )(config, name='blocks')
    x_BxLxD, _ = blocks(x_BxLxD, rope_tables(length, config.head_dim, config.rope_base))
    self.sow(METRICS, ACTIVATION_NORM, root_mean_square(x_BxLxD))
    return nn.RMSNorm(dtype=config.dtype, name='final_norm')(x_BxLxD)


class Block(nn.Module):
  """One pre-norm transformer block, with the signature of a scan's body."""

  config: GPTConfig

  @nn.compact
  def __call__(
    self, x_BxLxD: jax.Array, rope: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, None]:
    config = self.config
    # 2 * layers sums go into the residual stream: this keeps its variance at initialisation from
    # growing with depth (GPT-2, section 2.3).
    residual_stddev = _INIT_STDDEV / math.sqrt(2 * config.layers)

    x_BxLxD = split_batch(x_BxLxD)
    h_BxLxD = self._norm('attention_norm', x_BxLxD)
    h_BxLxD = self._attend(self._project('qkv', h_BxLxD, 3 * config.width), rope)
    x_BxLxD += self._project('attention_out', h_BxLxD, config.width, residual_stddev)

    h_BxLxD = self._norm('mlp_norm', x_BxLxD)
    h_BxLxF = nn.silu(self._project('mlp_up', h_BxLxD, config.mlp_ratio * config.width))
    x_BxLxD += self._project('mlp_down', h_BxLxF, config.width, residual_stddev)
    return x_BxLxD, None

  def _attend(self, qkv_BxLx3D: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    config = self.config
    batch, length, _ = qkv_BxLx3D.shape
    qkv_BxLx3xHxK = qkv_BxLx3D.reshape(batch, length, 3, config.heads, config.head_dim)
    q_BxLxHxK, k_BxLxHxK, v_BxLxHxK = jnp.unstack(qkv_BxLx3xHxK, axis=2)
    if config.qk_norm:
      q_BxLxHxK = self._norm('query_norm', q_BxLxHxK)
      k_BxLxHxK = self._norm('key_norm', k_BxLxHxK)
    out_BxLxHxK = jax.nn.dot_product_attention(
      apply_rope(q_BxLxHxK, rope),
      apply_rope(k_BxLxHxK, rope),
      v_BxLxHxK,
      is_causal=True,
      implementation=attention_implementation(config),
    )
    return out_BxLxHxK.reshape(batch, length, config.width)

  def _norm(self, name: str, x: jax.Array) -> jax.Array:
    # Flax takes the mean square in float32 whatever the dtype of the input and the output.
    return nn.RMSNorm(dtype=self.config.dtype, name=name)(x)

  def _project(
    self, name: str, x: jax.Array, features: int, stddev: float = _INIT_STDDEV
  ) -> jax.Array:
    init = nn.initializers.normal(stddev)
    # The kernel is cast before it is gathered: gradients are summed over devices in that dtype.
    dense = nn.Dense(
      features,
      use_bias=False,
      dtype=self.config.dtype,
      kernel_init=init,
      dot_general=_split_product,
      name=name,
    )
    return jax.ad_checkpoint.checkpoint_name(dense(x), _PROJECTION)


def _split_product(x, kernel, dimension_numbers, precision=None):
  """`jax.lax.dot_general` with the sequences of x, and the kernel, split over a worker's devices."""
  product = lambda kernel, x: jax.lax.dot_general(x, kernel, dimension_numbers, precision)
  return over_batch_parts(product, kernel, x)


def _remat(block: type[nn.Module], remat: str) -> type[nn.Module]:
  """Returns `block` with the rematerialisation that `GPTConfig.remat` names."""
  if remat == 'none':
    return block
  # By name, and not by `dots_with_no_batch_dims_saveable`: with a vmap over replicas inside the
  # gradient each matmul has a batch dimension, and that policy would store none of them.
  policies = {
    'dots': jax.checkpoint_policies.save_only_these_names(_PROJECTION),
    'full': jax.checkpoint_policies.nothing_saveable,
  }
  # Inside a scan there is nothing that common-subexpression elimination could merge.
  return nn.remat(block, policy=policies[remat], prevent_cse=False)


def look_up(embedding_VxD: jax.Array, tokens_BxL: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Returns the embeddings [B, L, D] of tokens in `dtype`."""

  # Looked up before the cast: the gradient of a lookup is a sum over repeats of a token, and so
  # it is taken in float32.
  def of_part(embedding_VxD, tokens_BxL):
    return jnp.take(embedding_VxD, tokens_BxL, axis=0).astype(dtype)

  return over_batch_parts(of_part, embedding_VxD, tokens_BxL)


def attention_implementation(config: GPTConfig) -> str:
  """Returns 'cudnn' or 'xla', for `jax.nn.dot_product_attention` on the default backend.

  Raises:
    errors.UserError: `config.attention` is 'cudnn' and the default backend is not a GPU.
  """
  on_gpu = jax.default_backend() == 'gpu'
  if config.attention == 'cudnn' and not on_gpu:
    raise errors.UserError(
      f"attention is 'cudnn' on {jax.default_backend()!r}: it needs a GPU. Use 'auto' or 'xla'."
    )
  if config.attention == 'auto':
    return 'cudnn' if on_gpu and config.cudnn_can_attend else 'xla'
  return config.attention


def rope_tables(length: int, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
  """Returns float32 (cos, sin), each [length, head_dim / 2], of the angles position * frequency.

  Source: RoFormer, https://arxiv.org/abs/2104.09864, equation 15.
  """
  frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x_BxLxHxK: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Returns x with the pairs (i, i + K/2) of each head turned by their angle; x's dtype is kept."""
  cos, sin = (table[:, None, :] for table in rope)
  first, second = jnp.split(x_BxLxHxK, 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x_BxLxHxK.dtype)
