"""Next-token cross-entropy that never holds the scores of all tokens.

At a vocabulary of 50,368 the float32 scores of 64 sequences of 2,048 tokens would take 26 GB, more
than the rest of a small model's training. So positions go through in chunks, and the backward pass
computes the scores of each chunk again.

B: sequences, L: tokens in a sequence, N: chunks, C: positions in a chunk, D: width, V: vocabulary.
"""

import functools
import math

import jax
import jax.numpy as jnp

from desloc_jax.model import gpt
from desloc_jax.model.splitting import over_batch_parts


def next_token_loss(params: gpt.Params, tokens_BxL1: jax.Array, config: gpt.GPTConfig) -> jax.Array:
  """Returns the mean loss in nats per token, a float32 scalar.

  Args:
    params: the tree of `gpt.init_params`.
    tokens_BxL1: int32 [batch, length + 1]; the model reads all but the last, predicts all but the
      first.
    config: of the model; `length` must be at most `config.seq_len`.

  Raises:
    errors.UserError: the sequences are too long.
  """
  # All sequences have one length, so the mean of their means is the mean over tokens.
  return sequence_losses(params, tokens_BxL1, config).mean()


def sequence_losses(params: gpt.Params, tokens_BxL1: jax.Array, config: gpt.GPTConfig) -> jax.Array:
  """Returns float32 [B], each sequence's mean loss in nats per token, as `next_token_loss`."""
  return _losses_and_metrics(params, tokens_BxL1, config)[0].mean(axis=1)


def next_token_loss_and_metrics(
  params: gpt.Params, tokens_BxL1: jax.Array, config: gpt.GPTConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns `next_token_loss` and `{'activation_norm': ...}`, float32 scalars.

  That is the root mean square of what the last block hands to the final norm.
  """
  losses_BxL, metrics = _losses_and_metrics(params, tokens_BxL1, config)
  return losses_BxL.mean(axis=1).mean(), metrics


def _losses_and_metrics(params, tokens_BxL1, config) -> tuple[jax.Array, dict[str, jax.Array]]:
  hidden_BxLxD, sown = gpt.GPT(config).apply(
    {'params': params}, tokens_BxL1[:, :-1], mutable=[gpt.METRICS]
  )
  losses_BxL = token_losses(
    hidden_BxLxD, gpt.output_embedding(params), tokens_BxL1[:, 1:], config.loss_chunk
  )
  return losses_BxL, {name: value for name, (value,) in sown[gpt.METRICS].items()}


def token_losses(
  hidden_BxLxD: jax.Array, embedding_VxD: jax.Array, targets_BxL: jax.Array, loss_chunk: int
) -> jax.Array:
  """Returns float32 [B, L], the cross-entropy of each target in nats.

  Matmul operands are in the dtype of the hidden states, sums and log-sum-exp in float32. The
  gradient of the embedding is summed over chunks in float32.

  Args:
    hidden_BxLxD: what `GPT` returns.
    embedding_VxD: float32, `gpt.output_embedding`: scores are its product with the hidden states.
    targets_BxL: integers in [0, V). One above that range has a loss of NaN.
    loss_chunk: tokens to have scores of at once on each device, rounded down to a multiple of its
      sequences, and at least one of each.
  """
  of_part = functools.partial(_part_losses, loss_chunk)
  return over_batch_parts(of_part, embedding_VxD, hidden_BxLxD, targets_BxL)


def _part_losses(loss_chunk: int, embedding_VxD, hidden_BxLxD, targets_BxL) -> jax.Array:
  """Returns the losses of the sequences of one device."""
  batch, length, _ = hidden_BxLxD.shape
  # Chunks are cut along positions, so that each has all sequences.
  chunks = math.ceil(length / max(1, loss_chunk // batch))
  positions = math.ceil(length / chunks)

  def split(x_BxLx):
    padding = [(0, 0), (0, chunks * positions - length)] + [(0, 0)] * (x_BxLx.ndim - 2)
    x_BxNxCx = jnp.pad(x_BxLx, padding).reshape(batch, chunks, positions, *x_BxLx.shape[2:])
    return jnp.moveaxis(x_BxNxCx, 1, 0)

  losses_NxBxC = _chunk_losses(split(hidden_BxLxD), embedding_VxD, split(targets_BxL))
  # Dropping the padding here also makes its gradient zero.
  return jnp.moveaxis(losses_NxBxC, 0, 1).reshape(batch, -1)[:, :length]


# The derivative is written out for two reasons: JAX's own multiplies the float32 gradient of the
# scores without casting it to bfloat16, at half the speed or less, and it would sum the gradient of
# a bfloat16 embedding in bfloat16.
@jax.custom_vjp
def _chunk_losses(
  hidden_NxBxCxD: jax.Array, embedding_VxD: jax.Array, targets_NxBxC: jax.Array
) -> jax.Array:
  return _forward(hidden_NxBxCxD, embedding_VxD, targets_NxBxC)[0]


def _forward(hidden_NxBxCxD, embedding_VxD, targets_NxBxC):
  cast_VxD = embedding_VxD.astype(hidden_NxBxCxD.dtype)

  def chunk(args):
    hidden_BxCxD, targets_BxC = args
    logits_BxCxV = gpt.scores(hidden_BxCxD, cast_VxD)
    logsumexp_BxC = jax.nn.logsumexp(logits_BxCxV, axis=-1)
    target_BxC = jnp.take_along_axis(logits_BxCxV, targets_BxC[..., None], axis=-1)[..., 0]
    return logsumexp_BxC - target_BxC, logsumexp_BxC

  losses_NxBxC, logsumexp_NxBxC = jax.lax.map(chunk, (hidden_NxBxCxD, targets_NxBxC))
  return losses_NxBxC, (hidden_NxBxCxD, embedding_VxD, targets_NxBxC, logsumexp_NxBxC)


def _backward(residuals, grad_losses_NxBxC):
  hidden_NxBxCxD, embedding_VxD, targets_NxBxC, logsumexp_NxBxC = residuals
  dtype = hidden_NxBxCxD.dtype
  cast_VxD = embedding_VxD.astype(dtype)

  def chunk(grad_embedding_VxD, args):
    hidden_BxCxD, targets_BxC, logsumexp_BxC, grad_losses_BxC = args
    probs_BxCxV = jnp.exp(gpt.scores(hidden_BxCxD, cast_VxD) - logsumexp_BxC[..., None])
    grad_BxCxV = probs_BxCxV - jax.nn.one_hot(targets_BxC, probs_BxCxV.shape[-1])
    grad_BxCxV = (grad_BxCxV * grad_losses_BxC[..., None]).astype(dtype)
    grad_embedding_VxD += jnp.einsum(
      'bcv,bcd->vd', grad_BxCxV, hidden_BxCxD, preferred_element_type=jnp.float32
    )
    return grad_embedding_VxD, jnp.einsum('bcv,vd->bcd', grad_BxCxV, cast_VxD)

  grad_embedding_VxD, grad_hidden_NxBxCxD = jax.lax.scan(
    chunk,
    jnp.zeros_like(embedding_VxD),  # The carry: one sum, not one gradient for each chunk.
    (hidden_NxBxCxD, targets_NxBxC, logsumexp_NxBxC, grad_losses_NxBxC),
  )
  return grad_hidden_NxBxCxD, grad_embedding_VxD, None


_chunk_losses.defvjp(_forward, _backward)
