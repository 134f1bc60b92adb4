"""Documents to token ids, each closed by the end-of-document id."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from desloc_jax.data import splits
from desloc_jax.data.tokenizers import Tokenizer
from desloc_jax.errors import UserError

# Enough text for the tokenizer's own threads, little enough to hold many batches in memory.
_BATCH_CHARACTERS = 2**18
_MOST_DROPPED = 0.01  # Of a text, by a tokenizer that lacks a part of it.
_ENOUGH_BYTES = 2**20  # Of text, to see how much is dropped.


class EncodedDocument(NamedTuple):
  """One document as it is stored.

  Attributes:
    split: 'train' or 'validation'.
    tokens: ids [tokens] of the tokenizer's dtype, the end-of-document id last.
    text_bytes: length of the text in UTF-8 bytes.
    dropped_bytes: of them, those that left no token; see `tokenizers.Encoding`.
    unknown: tokens that stand for text that the vocabulary lacks.
  """

  split: str
  tokens: np.ndarray
  text_bytes: int
  dropped_bytes: int = 0
  unknown: int = 0


@dataclasses.dataclass
class Losses:
  """Counts, document by document, what a tokenizer loses of a text.

  Attributes:
    path: of the text, for messages.
    tokenizer: its name, likewise.
    text_bytes: in UTF-8, of all documents.
    dropped_bytes: see `EncodedDocument`, as below.
    tokens: end-of-document ids included.
    unknown: of the tokens.
  """

  path: str
  tokenizer: str
  text_bytes: int = 0
  dropped_bytes: int = 0
  tokens: int = 0
  unknown: int = 0

  def add(self, document: EncodedDocument) -> None:
    """Counts a document.

    Raises:
      UserError: of a megabyte of text or more, too much was dropped already.
    """
    self.text_bytes += document.text_bytes
    self.dropped_bytes += document.dropped_bytes
    self.tokens += len(document.tokens)
    self.unknown += document.unknown
    if document.dropped_bytes and self.text_bytes > _ENOUGH_BYTES:
      self._check()

  def finish(self) -> list[str]:
    """Returns what was lost, a sentence each.

    Raises:
      UserError: more than a hundredth of the text was dropped.
    """
    self._check()
    lines = []
    if self.dropped_bytes:
      lines.append(f'{self.path}: {self._dropped()}.')
    if self.unknown:
      lines.append(
        f'{self.path}: {self.unknown:,} of {self.tokens:,} tokens '
        f'({self.unknown / self.tokens:.2g} of them) stand for text that '
        f'tokenizer {self.tokenizer} does not know, so bits per byte come out too low.'
      )
    return lines

  def _check(self) -> None:
    if self.dropped_bytes > _MOST_DROPPED * self.text_bytes:
      raise UserError(
        f'{self.path}: {self._dropped()}; expected at most {_MOST_DROPPED} of it. A byte-level '
        'tokenizer drops none: desloc_jax.data.train_tokenizer makes one.'
      )

  def _dropped(self) -> str:
    return (
      f'tokenizer {self.tokenizer} drops {self.dropped_bytes:,} of {self.text_bytes:,} bytes of text '
      f'({self.dropped_bytes / self.text_bytes:.2g} of it), which it has no tokens for'
    )


def encode_documents(
  texts: Sequence[str], tokenizer: Tokenizer, validation_fraction: float
) -> list[EncodedDocument]:
  """Returns each text encoded, with the split it belongs to."""
  return [
    EncodedDocument(
      split='validation' if splits.is_held_out(text, validation_fraction) else 'train',
      tokens=np.append(encoded.ids, np.array(tokenizer.end_of_document, encoded.ids.dtype)),
      text_bytes=len(text.encode('utf-8')),
      dropped_bytes=encoded.dropped_bytes,
      unknown=encoded.unknown,
    )
    for text, encoded in zip(texts, tokenizer.encode_batch(texts), strict=True)
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
