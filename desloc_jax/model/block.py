"""One block of the transformer: attention over what came before, and an MLP.

Letters of shapes are those of `gpt.py`.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.ad_checkpoint
import jax.numpy as jnp

from desloc_jax.model.attention import attend_in_blocks
from desloc_jax.model.choices import attention_implementation
from desloc_jax.model.gpt_config import GPTConfig
from desloc_jax.model.product import made_once, product
from desloc_jax.model.rope import apply_rope
from desloc_jax.model.splitting import over_batch_parts, split_batch

INIT_STDDEV = 0.02  # GPT-2; the projections back into the residual stream get less, see `Block`.
CACHE = 'cache'  # Keys and values of the tokens read so far, where `GPT` reads on.
_PROJECTION = 'projection'


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


class Block(nn.Module):
  """One pre-norm transformer block, with the signature of a scan's body."""

  config: GPTConfig

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array, positions: Positions) -> tuple[jax.Array, None]:
    config = self.config
    # 2 * layers sums go into the residual stream: this keeps its variance at initialisation from
    # growing with depth (GPT-2, section 2.3).
    residual_stddev = INIT_STDDEV / math.sqrt(2 * config.layers)

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
    implementation = attention_implementation(config) if positions.start is None else 'xla'
    in_blocks = implementation == 'blocks'
    heads = qkv_BxLxE.reshape(batch, length, -1, config.head_dim)
    if in_blocks:
      heads = made_once(jnp.swapaxes(heads, 1, 2))
    ends = (config.heads, config.heads + config.key_heads)
    q, k, v = jnp.split(heads, ends, axis=1 if in_blocks else 2)
    if config.qk_norm:
      q, k = self._norm('query_norm', q), self._norm('key_norm', k)
    q, k = (apply_rope(x, positions.rope, heads_first=in_blocks) for x in (q, k))
    if in_blocks:
      out_BxHxLxK = attend_in_blocks(q, k, v, positions.sees)
      return jnp.swapaxes(out_BxHxLxK, 1, 2).reshape(batch, length, -1)
    mask = positions.sees
    if positions.start is not None:
      k, v, mask_LxS = self._remember(k, v, positions.start)
      mask = mask_LxS[None, None]
    causal = positions.start is None
    out_BxLxHxK = jax.nn.dot_product_attention(
      q, k, v, mask=mask, is_causal=causal, implementation=implementation
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
    self, name: str, x: jax.Array, features: int, stddev: float = INIT_STDDEV
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


def with_remat(block: type[nn.Module], remat: str) -> type[nn.Module]:
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
