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
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.ad_checkpoint
import jax.numpy as jnp

from desloc_jax import errors
from desloc_jax.model.gpt_config import GPTConfig
from desloc_jax.model.product import product
from desloc_jax.model.rope import apply_rope, rope_tables
from desloc_jax.model.splitting import over_batch_parts, split_batch

Params = dict[str, Any]

_INIT_STDDEV = 0.02  # GPT-2; the projections back into the residual stream get less, see `Block`.
_PROJECTION = 'projection'
METRICS, ACTIVATION_NORM = 'metrics', 'activation_norm'  # What `GPT` sows besides its result.
CACHE = 'cache'  # Keys and values of the tokens read so far, where `GPT` reads on.


class Positions(NamedTuple):
  """Where the tokens are in their sequences.

  Attributes:
    rope: float32 (cos, sin), each [L, K / 2].
    start: int32 scalar, tokens of each sequence that the cache holds; None: there is no cache.
    sees: boolean [B, 1, L, L], whether two tokens are of one document; None: all see all before.
  """

  rope: tuple[jax.Array, jax.Array]
  start: jax.Array | None
  sees: jax.Array | None


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
      'embedding', nn.initializers.normal(_INIT_STDDEV), (config.vocab_size, config.width)
    )
    if not config.tie_embeddings:
      self.param('output_embedding', nn.initializers.normal(_INIT_STDDEV), embedding_VxD.shape)
    x_BxLxD = look_up(embedding_VxD, tokens_BxL, config.dtype)
    blocks = nn.scan(
      _remat(Block, config.remat),
      variable_axes={'params': 0, CACHE: 0},
      split_rngs={'params': True},
      in_axes=nn.broadcast,
      length=config.layers,
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


class Block(nn.Module):
  """One pre-norm transformer block, with the signature of a scan's body."""

  config: GPTConfig

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array, positions: Positions) -> tuple[jax.Array, None]:
    config = self.config
    # 2 * layers sums go into the residual stream: this keeps its variance at initialisation from
    # growing with depth (GPT-2, section 2.3).
    residual_stddev = _INIT_STDDEV / math.sqrt(2 * config.layers)

    x_BxLxD = split_batch(x_BxLxD)
    h_BxLxD = self._norm('attention_norm', x_BxLxD)
    features = (config.heads + 2 * config.key_heads) * config.head_dim
    h_BxLxD = self._attend(self._project('qkv', h_BxLxD, features), positions)
    x_BxLxD += self._project('attention_out', h_BxLxD, config.width, residual_stddev)

    h_BxLxD = self._norm('mlp_norm', x_BxLxD)
    h_BxLxF = self._project('mlp_up', h_BxLxD, config.hidden)
    if config.mlp == 'gated':
      h_BxLxF *= nn.silu(self._project('mlp_gate', h_BxLxD, config.hidden))
    else:
      h_BxLxF = nn.silu(h_BxLxF)
    x_BxLxD += self._project('mlp_down', h_BxLxF, config.width, residual_stddev)
    return x_BxLxD, None

  def _attend(self, qkv_BxLxE: jax.Array, positions: Positions) -> jax.Array:
    config = self.config
    batch, length, _ = qkv_BxLxE.shape
    heads_BxLxNxK = qkv_BxLxE.reshape(batch, length, -1, config.head_dim)
    ends = (config.heads, config.heads + config.key_heads)
    q_BxLxHxK, k_BxLxGxK, v_BxLxGxK = jnp.split(heads_BxLxNxK, ends, axis=2)
    if config.qk_norm:
      q_BxLxHxK = self._norm('query_norm', q_BxLxHxK)
      k_BxLxGxK = self._norm('key_norm', k_BxLxGxK)
    q_BxLxHxK = apply_rope(q_BxLxHxK, positions.rope)
    k_BxLxGxK = apply_rope(k_BxLxGxK, positions.rope)
    mask, implementation = positions.sees, attention_implementation(config)
    if positions.start is not None:
      k_BxLxGxK, v_BxLxGxK, mask_LxS = self._remember(k_BxLxGxK, v_BxLxGxK, positions.start)
      mask, implementation = mask_LxS[None, None], 'xla'
    out_BxLxHxK = jax.nn.dot_product_attention(
      q_BxLxHxK,
      k_BxLxGxK,
      v_BxLxGxK,
      mask=mask,
      is_causal=positions.start is None,
      implementation=implementation,
    )
    return out_BxLxHxK.reshape(batch, length, -1)

  def _remember(self, keys_BxLxGxK: jax.Array, values_BxLxGxK: jax.Array, start: jax.Array):
    """Puts keys and values behind the `start` ones of the cache; returns all, [B, S, G, K], and a
    boolean [L, S]: which of them each token sees."""
    config = self.config
    found = []
    for name, new in (('keys', keys_BxLxGxK), ('values', values_BxLxGxK)):
      shape = (new.shape[0], config.seq_len, *new.shape[2:])
      kept = self.variable(CACHE, name, jnp.zeros, shape, new.dtype)
      kept.value = jax.lax.dynamic_update_slice_in_dim(kept.value, new, start, axis=1)
      found.append(kept.value)
    last_L = start + jnp.arange(keys_BxLxGxK.shape[1])
    return *found, jnp.arange(config.seq_len) <= last_L[:, None]

  def _norm(self, name: str, x: jax.Array) -> jax.Array:
    # Flax takes the mean square in float32 whatever the dtype of the input and the output.
    return nn.RMSNorm(self.config.norm_eps, self.config.dtype, name=name)(x)

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
  """`product`, as `nn.Dense` asks for it, with x and the kernel split over a worker's devices."""
  del dimension_numbers, precision  # The last dimension against the first, as in every `nn.Dense`.
  return over_batch_parts(lambda kernel, x: product(x, kernel), kernel, x)


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
