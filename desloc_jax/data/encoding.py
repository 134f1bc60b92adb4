"""Documents to token ids, each closed by the end-of-document id."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from desloc_jax.data import splits
from desloc_jax.data.tokenizers import Tokenizer

# Enough text for the tokenizer's own threads, little enough to hold many batches in memory.
_BATCH_CHARACTERS = 2**18


class EncodedDocument(NamedTuple):
  """One document as it is stored.

  Attributes:
    split: 'train' or 'validation'.
    tokens: ids [tokens] of the tokenizer's dtype, the end-of-document id last.
    text_bytes: length of the text in UTF-8 bytes.
  """

  split: str
  tokens: np.ndarray
  text_bytes: int


def encode_documents(
  texts: Sequence[str], tokenizer: Tokenizer, validation_fraction: float
) -> list[EncodedDocument]:
  """Returns each text encoded, with the split it belongs to."""
  return [
    EncodedDocument(
      split='validation' if splits.is_held_out(text, validation_fraction) else 'train',
      tokens=np.append(tokens, np.array(tokenizer.end_of_document, tokens.dtype)),
      text_bytes=len(text.encode('utf-8')),
    )
    for text, tokens in zip(texts, tokenizer.encode_batch(texts), strict=True)
  ]


def batch_texts(texts: Iterable[str]) -> Iterator[list[str]]:
  """Yields the texts in order in lists worth encoding at once."""
  batch, characters = [], 0
  for text in texts:
    batch.append(text)
    characters += len(text)
    if characters >= _BATCH_CHARACTERS:
      yield batch
      batch, characters = [], 0
  if batch:
    yield batch
