"""Documents one by one, as lm-evaluation-harness scores them (`loglikelihood_rolling`).

Behind the end of a document each token of a text is predicted once: the first ones in one sequence of
the model's length, and what is left at the end with as many tokens before it as there is room for. The
end of the document is not predicted.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import itertools

import jax
import numpy as np

from desloc_jax import model as model_lib
from desloc_jax.hub.stored import read_params, StoredModel
from desloc_jax.model import gpt

BATCH_TOKENS = 2**13  # Of an evaluation, at once.


@dataclasses.dataclass
class Score:
  """What texts got together: nats in all, and how many documents, tokens and UTF-8 bytes there are."""

  nats: float = 0.0
  documents: int = 0
  tokens: int = 0
  bytes: int = 0


def windows(ids: np.ndarray, before: int, length: int) -> Iterator[tuple[np.ndarray, int]]:
  """Yields sequences of at most `length + 1` ids, and how many of the last ones count in each.

  Args:
    ids: of a document, int [tokens].
    before: the id that stands before the first.
    length: of the model's sequences.
  """
  ids = np.concatenate([[before], ids])
  for start in range(1, len(ids), length):
    stop = min(start + length, len(ids))
    yield ids[max(0, stop - length - 1) : stop], stop - start


def score(stored: StoredModel, texts: Iterable[str]) -> Score:
  """Returns the score of documents, in the dtype that the model computes in."""
  length, tokenizer, total = stored.seq_len, stored.tokenizer, Score()
  config = dataclasses.replace(stored.config, seq_len=length)
  params = read_params(stored)

  @jax.jit
  def losses(tokens_BxL1):
    hidden = model_lib.GPT(config).apply({'params': params}, tokens_BxL1[:, :-1])
    embedding = gpt.output_embedding(params)
    return model_lib.token_losses(hidden, embedding, tokens_BxL1[:, 1:], config.loss_chunk)

  def cut() -> Iterator[tuple[np.ndarray, int]]:
    for text in texts:
      ids = tokenizer.encode(text)
      total.documents += 1
      total.tokens += len(ids)
      total.bytes += len(text.encode())
      yield from windows(ids, tokenizer.end_of_document, length)

  found, size = cut(), max(1, BATCH_TOKENS // length)
  while batch := list(itertools.islice(found, size)):
    tokens_BxL1 = np.zeros((size, length + 1), np.int32)
    for row, (ids, _) in zip(tokens_BxL1, batch, strict=False):
      row[: len(ids)] = ids
    for row, (ids, counted) in zip(np.asarray(losses(tokens_BxL1)), batch, strict=False):
      total.nats += float(row[len(ids) - 1 - counted : len(ids) - 1].sum(dtype=np.float64))
  return total
