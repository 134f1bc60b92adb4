"""What a GPT is made of: its sizes and how it is computed, checked before anything is built."""

import dataclasses

import jax.numpy as jnp

from desloc_jax import errors, valid

_CUDNN_MAX_HEAD_DIM = 128  # Hopper and later take 256, Ampere and Ada no more than this.
# What each field of `GPTConfig` may be.
VALID = {
  **dict.fromkeys(('vocab_size', 'layers', 'width', 'heads', 'seq_len'), valid.at_least(1)),
  **dict.fromkeys(('mlp_ratio', 'loss_chunk'), valid.at_least(1)),
  **dict.fromkeys(('kv_heads', 'head_size', 'mlp_hidden'), valid.at_least(0)),
  'mlp': valid.one_of(('plain', 'gated')),
  'norm_eps': valid.Valid(lambda x: 0 < x < 1, 'in (0, 1)'),
  'document_end': valid.at_least(-1),
  'rope_base': valid.ABOVE_ONE,
  'rope_scaling': valid.Valid(
    lambda x: not x or len(x) == 4 and 0 < min(x) and max(x) < valid.FLOAT32_LIMIT and x[1] < x[2],
    'that are none, or four above 0: factor, low, high (more than low), positions',
  ),
  **dict.fromkeys(('qk_norm', 'tie_embeddings'), valid.ANY),
  'compute_dtype': valid.one_of(('float32', 'bfloat16')),
  'remat': valid.one_of(('none', 'dots', 'full')),
  'attention': valid.one_of(('auto', 'xla', 'cudnn', 'blocks')),
  'platform': valid.one_of(('', 'cpu', 'gpu', 'tpu')),
}


@dataclasses.dataclass(frozen=True)
class GPTConfig:
  """Sizes and computation choices of a `GPT`; hashable, so it can be a static argument.

  Attributes:
    vocab_size: tokens in the vocabulary.
    layers: transformer blocks.
    width: D, the size of the residual stream.
    heads: attention heads.
    seq_len: longest sequence, in tokens, that the model reads.
    kv_heads: heads of keys and values, each for as many of the `heads`; 0: as many as these.
    head_size: numbers of a head, even; 0: `width / heads`.
    mlp: 'plain': down(silu(up(x))); 'gated': down(silu(gate(x)) * up(x)).
    mlp_ratio: hidden size of the MLP as a multiple of `width`.
    mlp_hidden: hidden size of the MLP in place of `mlp_ratio`; 0: that decides.
    norm_eps: added to the mean square in each RMSNorm.
    rope_base: base of the rotary frequencies.
    rope_scaling: (factor, low, high, positions) of `rope.scale_frequencies`; empty: none.
    tie_embeddings: whether scores are taken against the input embedding, or an output matrix of their
      own.
    qk_norm: whether queries and keys go through an RMSNorm over the head dimension.
    compute_dtype: dtype of activations and matmul operands. Parameters, normalisation statistics,
      the softmax and the loss are float32 in either case.
    remat: what the backward pass finds stored for each block. 'none': all activations; 'dots': the
      outputs of the four projections; 'full': only the input of the block.
    attention: 'xla', 'cudnn' (flash attention), 'blocks' (`attention.attend_in_blocks`) or 'auto':
      cuDNN where it can be used, blocks on CPUs, else XLA. 'auto' takes every GPU for one with cuDNN
      flash attention (NVIDIA Ampere or later): on others say 'xla'.
    document_end: id of the token between two documents, which do not see each other: the token
      begins the second one. -1: all tokens see all before them. cuDNN is not used then.
    loss_chunk: about how many tokens have their logits in memory at once, for each worker on each
      device.
    platform: 'cpu', 'gpu' or 'tpu', that it is computed on, for what is done best in another way there
      (`attention_implementation`, `unrolls`); empty: JAX's default backend.

  Raises:
    errors.UserError: a field is invalid, or the fields do not go together.
  """

  vocab_size: int
  layers: int
  width: int
  heads: int
  seq_len: int
  kv_heads: int = 0
  head_size: int = 0
  mlp: str = 'plain'
  mlp_ratio: int = 4
  mlp_hidden: int = 0
  norm_eps: float = 1e-6
  rope_base: float = 10_000.0
  rope_scaling: tuple = ()
  qk_norm: bool = False
  tie_embeddings: bool = True
  compute_dtype: str = 'float32'
  remat: str = 'none'
  attention: str = 'auto'
  document_end: int = -1
  loss_chunk: int = 2048
  platform: str = ''

  def __post_init__(self):
    for field in dataclasses.fields(self):
      valid.check_value(field.name, getattr(self, field.name), field.type, VALID[field.name])
    if not self.head_size and self.width % (2 * self.heads):
      raise errors.UserError(
        f'width is {self.width} with heads {self.heads}: it must be a multiple of '
        f'{2 * self.heads}, because rotary positions turn the numbers of each head in pairs.'
      )
    if self.head_size % 2:
      raise errors.UserError(
        f'head_size is {self.head_size}: it must be even, because rotary positions turn the numbers '
        'of each head in pairs.'
      )
    if self.heads % self.key_heads:
      raise errors.UserError(
        f'kv_heads is {self.kv_heads} with heads {self.heads}: it must divide them.'
      )
    widest = max((self.heads + 2 * self.key_heads) * self.head_dim, self.hidden)
    if widest >= valid.LIMIT:
      raise errors.UserError(
        f'width is {self.width} with mlp_ratio {self.mlp_ratio}: the projections have an axis of '
        f'{widest}, which must be below {valid.LIMIT}.'
      )
    if self.attention == 'cudnn' and self.document_end >= 0:
      raise errors.UserError(
        "attention is 'cudnn', which cannot keep documents apart here: use 'auto' or 'xla'."
      )
    if self.attention == 'cudnn' and not self.cudnn_can_attend:
      raise errors.UserError(
        f"attention is 'cudnn' with compute_dtype {self.compute_dtype!r} and heads of size "
        f"{self.head_dim}: it takes 'bfloat16' and a multiple of 8 up to {_CUDNN_MAX_HEAD_DIM}."
      )

  @property
  def head_dim(self) -> int:
    return self.head_size or self.width // self.heads

  @property
  def key_heads(self) -> int:
    """Heads of keys and values."""
    return self.kv_heads or self.heads

  @property
  def hidden(self) -> int:
    """Hidden size of the MLP."""
    return self.mlp_hidden or self.mlp_ratio * self.width

  @property
  def dtype(self) -> jnp.dtype:
    return jnp.dtype(self.compute_dtype)

  @property
  def cudnn_can_attend(self) -> bool:
    """Whether cuDNN flash attention takes these heads in this dtype, given a GPU for it."""
    fits = self.head_dim % 8 == 0 and self.head_dim <= _CUDNN_MAX_HEAD_DIM
    return fits and self.compute_dtype == 'bfloat16' and self.document_end < 0
