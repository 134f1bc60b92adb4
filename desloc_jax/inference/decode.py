"""Tokens one after another, each read once: keys and values of those before are kept."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from desloc_jax import model as model_lib
from desloc_jax.model import gpt


@dataclasses.dataclass(frozen=True)
class Choice:
  """How the next token is drawn.

  Attributes:
    temperature: that logits are divided by; 0: the most likely token.
    top_p: the most likely tokens that together have this probability, after the temperature, are
      drawn from (https://arxiv.org/abs/1904.09751).
    vocab_size: tokens of the tokenizer; the embedding may have more rows.
  """

  temperature: float
  top_p: float
  vocab_size: int

  def draw(self, logits_V: jax.Array, key: jax.Array) -> jax.Array:
    """Returns an id, int32, of float32 logits."""
    logits_V = logits_V[: self.vocab_size]
    if self.temperature == 0:
      return jnp.argmax(logits_V).astype(jnp.int32)
    logits_V = logits_V / self.temperature
    if self.top_p < 1:
      order = jnp.argsort(-logits_V)
      probabilities = jax.nn.softmax(logits_V[order])
      before = jnp.cumsum(probabilities) - probabilities  # The first one always stays.
      logits_V = logits_V.at[order].set(jnp.where(before < self.top_p, logits_V[order], -jnp.inf))
    return jax.random.categorical(key, logits_V).astype(jnp.int32)


def generate(
  params: gpt.Params,
  config: model_lib.GPTConfig,
  prompt: Sequence[int],
  choice: Choice,
  seed: int,
  context: int,
) -> Iterator[int]:
  """Yields tokens for ever, each as soon as it is drawn.

  When `context` tokens are read the older half is forgotten, and the rest is read again.

  Args:
    params: of the model.
    config: of the model.
    prompt: ids, at least one; of more than `context` the last ones are read.
    choice: of the next token.
    seed: of the draws; equal seeds give equal tokens.
    context: tokens that are read at once, at most; those that the model was trained with.
  """
  config = dataclasses.replace(config, seq_len=context)

  @functools.partial(jax.jit, donate_argnums=0)
  def read_on(cache, params, tokens_L, start, last, key):
    """Returns the cache, and the token drawn behind the one at `last` of these."""
    hidden_BxLxD, kept = model_lib.GPT(config).apply(
      {'params': params, gpt.CACHE: cache}, tokens_L[None], start, mutable=[gpt.CACHE]
    )
    hidden_BxLxD = jax.lax.dynamic_slice_in_dim(hidden_BxLxD, last, 1, axis=1)
    return kept[gpt.CACHE], choice.draw(model_lib.logits(params, hidden_BxLxD)[0, 0], key)

  tokens, cache, held = list(prompt), None, 0
  for key in _keys(seed):
    if cache is None or held == context:
      tokens = tokens[-max(1, context // 2) :] if held == context else tokens[-context:]
      cache, held = gpt.empty_cache(config, 1), 0
    new = tokens[held:]
    # Filled up to a power of two, so that few lengths are compiled; what fills is overwritten.
    length = min(1 << (len(new) - 1).bit_length(), context - held)
    padded = np.zeros(length, np.int32)
    padded[: len(new)] = new
    cache, token = read_on(cache, params, padded, held, len(new) - 1, key)
    held = len(tokens)
    tokens.append(int(token))
    yield tokens[-1]


def _keys(seed: int) -> Iterator[jax.Array]:
  key = jax.random.key(seed)
  while True:
    key, draw = jax.random.split(key)
    yield draw
