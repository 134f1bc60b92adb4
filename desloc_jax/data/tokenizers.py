"""Tokenizers: text to token ids and back.

A tokenizer here never adds a token by itself: no beginning of text, no padding, no truncation. The
end-of-document id is put after each document by `desloc_jax.data.encoding`, and text that happens
to spell a special token ("<|endoftext|>") is encoded as ordinary text.
"""

import abc
from collections.abc import Sequence
import hashlib
from typing import Any, NamedTuple

import numpy as np

from desloc_jax.data import tokenizer_files

END_OF_TEXT = '<|endoftext|>'
BUILT_IN = ('bytes', 'gpt2')


class Encoding(NamedTuple):
  """A text as tokens, and what of it they do not say.

  Attributes:
    ids: of the tokenizer's dtype [tokens].
    dropped_bytes: of the text in UTF-8, at least so many left no token (whitespace not counted,
      where a tokenizer takes it for a mere separator).
    unknown: tokens that stand for text that the vocabulary lacks.
  """

  ids: np.ndarray
  dropped_bytes: int = 0
  unknown: int = 0


class Tokenizer(abc.ABC):
  """What every tokenizer offers.

  Attributes:
    name: 'bytes', 'gpt2' or the file's name.
    vocab_size: every id is in [0, vocab_size).
    end_of_document: the id that closes a document.
    fingerprint: sha256 in hex of the definition; equal fingerprints mean equal encodings.
    dtype: the unsigned type that ids are stored in, uint16 where the vocabulary fits, else uint32.
    keeps_bytes: whether `token_bytes` are exact.
    notes: what of the tokenizer's file is not followed, a sentence each.
    file: the tokenizer.json that it was read from; None: it is built in.
  """

  keeps_bytes = True
  notes: Sequence[str] = ()
  file: bytes | None = None

  def __init__(self, name: str, vocab_size: int, end_of_document: int, definition: bytes):
    self.name = name
    self.vocab_size = vocab_size
    self.end_of_document = end_of_document
    self.fingerprint = hashlib.sha256(definition).hexdigest()
    self.dtype = token_dtype(vocab_size)

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of `text`, `dtype` [tokens], without an end-of-document id."""
    return self.encode_batch([text])[0].ids

  @property
  @abc.abstractmethod
  def token_bytes(self) -> np.ndarray:
    """UTF-8 bytes of the text that each id stands for, int64 [vocab_size]; 0 of special tokens."""

  @property
  @abc.abstractmethod
  def content(self) -> dict[str, Any]:
    """What a tokenizer.json says that encodes any text alike, special tokens by their own names."""

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
    """Returns the encoding of each text, without an end-of-document id."""

  @abc.abstractmethod
  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of integer `ids` [tokens]; an end-of-document id shows by its name.

    Bytes that are no valid UTF-8, as where a sequence cuts a character, become U+FFFD.
    """


class ByteTokenizer(Tokenizer):
  """UTF-8 bytes as ids 0..255 and the end of a document as id 256."""

  def __init__(self):
    super().__init__('bytes', 257, 256, b'UTF-8 bytes 0..255, end of document 256')

  @property
  def token_bytes(self) -> np.ndarray:
    return (np.arange(self.vocab_size) != self.end_of_document).astype(np.int64)

  @property
  def content(self) -> dict[str, Any]:
    return tokenizer_files.of_bytes(END_OF_TEXT)

  def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
    as_bytes = (np.frombuffer(text.encode('utf-8'), np.uint8) for text in texts)
    return [Encoding(each.astype(self.dtype)) for each in as_bytes]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    end = END_OF_TEXT.encode()
    pieces = (end if i == self.end_of_document else bytes([i]) for i in map(int, ids))
    return b''.join(pieces).decode('utf-8', errors='replace')


def token_dtype(vocab_size: int) -> np.dtype:
  """Returns the type that ids below `vocab_size` are stored in: uint16 or uint32."""
  return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
