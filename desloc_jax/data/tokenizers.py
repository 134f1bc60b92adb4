"""Tokenizers: text to token ids and back.

A tokenizer here never adds a token by itself: no beginning of text, no padding, no truncation. The
end-of-document id is put after each document by `desloc_jax.data.encoding`, and text that happens
to spell a special token ("<|endoftext|>") is encoded as ordinary text.
"""

import abc
from collections.abc import Sequence
import functools
import hashlib
import os

import numpy as np
import tokenizers as hf

from desloc_jax.data import gpt2
from desloc_jax.errors import unknown_choice, UserError

END_OF_TEXT = '<|endoftext|>'
_USUAL_ENDS = (END_OF_TEXT, '<|end_of_text|>', '</s>', '<eos>', '<|eos|>', '[EOS]', '[SEP]')


class Tokenizer(abc.ABC):
  """What every tokenizer offers.

  Attributes:
    name: 'bytes', 'gpt2' or the file's name.
    vocab_size: every id is in [0, vocab_size).
    end_of_document: the id that closes a document.
    fingerprint: sha256 in hex of the definition; equal fingerprints mean equal encodings.
    dtype: the unsigned type that ids are stored in, uint16 where the vocabulary fits, else uint32.
  """

  def __init__(self, name: str, vocab_size: int, end_of_document: int, definition: bytes):
    self.name = name
    self.vocab_size = vocab_size
    self.end_of_document = end_of_document
    self.fingerprint = hashlib.sha256(definition).hexdigest()
    self.dtype = token_dtype(vocab_size)

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of `text`, `dtype` [tokens], without an end-of-document id."""
    return self.encode_batch([text])[0]

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns `encode` of each text."""

  @abc.abstractmethod
  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of integer `ids` [tokens]; an end-of-document id shows by its name.

    Bytes that are no valid UTF-8, as where a sequence cuts a character, become U+FFFD.
    """


class ByteTokenizer(Tokenizer):
  """UTF-8 bytes as ids 0..255 and the end of a document as id 256."""

  def __init__(self):
    super().__init__('bytes', 257, 256, b'UTF-8 bytes 0..255, end of document 256')

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode('utf-8'), np.uint8).astype(self.dtype) for text in texts]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    end = END_OF_TEXT.encode()
    pieces = (end if i == self.end_of_document else bytes([i]) for i in map(int, ids))
    return b''.join(pieces).decode('utf-8', errors='replace')


class HuggingFaceTokenizer(Tokenizer):
  """Any tokenizer of the Hugging Face `tokenizers` library."""

  def __init__(self, name: str, tokenizer: hf.Tokenizer, end_of_document: int, definition: bytes):
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # The library's name for "as ordinary text".
    # The ids of a file may have holes: their count is not their bound.
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    super().__init__(name, vocab_size, end_of_document, definition)
    self._tokenizer = tokenizer

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    try:
      encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
      return [np.array(encoding.ids, self.dtype) for encoding in encodings]
    except Exception as error:  # The library raises nothing narrower.
      raise UserError(f'Tokenizer {self.name} cannot encode the text: {error}') from error

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def token_dtype(vocab_size: int) -> np.dtype:
  """Returns the type that ids below `vocab_size` are stored in: uint16 or uint32."""
  return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def load_tokenizer(spec: str, end_of_document: str | None = None) -> Tokenizer:
  """Returns the tokenizer that `spec` names.

  Args:
    spec: 'bytes' (vocabulary 257), 'gpt2' (vocabulary 50,257) or the path of a Hugging Face
      `tokenizer.json`.
    end_of_document: the token that closes a document, for a `tokenizer.json` where it has none of
      the usual names.

  Raises:
    UserError: `spec` is neither a name nor a readable tokenizer file, or the end-of-document token
      is not in its vocabulary.
  """
  if spec in ('bytes', 'gpt2'):
    if end_of_document is not None:
      raise UserError(
        f'end_of_document {end_of_document!r} is only for a tokenizer.json; tokenizer {spec!r} '
        'has its own.'
      )
    return _load_built_in(spec)
  if not os.path.isfile(spec):
    raise unknown_choice('tokenizer', spec, ('bytes', 'gpt2', 'PATH/tokenizer.json'))
  return _load_file(spec, end_of_document)


@functools.cache
def _load_built_in(name: str) -> Tokenizer:
  if name == 'bytes':
    return ByteTokenizer()
  ranks = gpt2.read_ranks_file()
  tokenizer = gpt2.build_tokenizer(gpt2.parse_ranks(ranks))
  tokenizer.add_special_tokens([END_OF_TEXT])
  return HuggingFaceTokenizer(name, tokenizer, tokenizer.token_to_id(END_OF_TEXT), ranks)


def _load_file(path: str, end_of_document: str | None) -> Tokenizer:
  with open(path, 'rb') as file:
    definition = file.read()
  try:
    tokenizer = hf.Tokenizer.from_str(definition.decode('utf-8'))
  except Exception as error:  # The library raises nothing narrower.
    raise UserError(f'{path} is not a Hugging Face tokenizer.json: {error}') from error
  end = _find_end_of_document(path, tokenizer, end_of_document)
  return HuggingFaceTokenizer(
    os.path.basename(path), tokenizer, end, definition + b'\0end of document %d' % end
  )


def _find_end_of_document(path: str, tokenizer: hf.Tokenizer, name: str | None) -> int:
  vocabulary = tokenizer.get_vocab(with_added_tokens=True)
  if name is not None and name not in vocabulary:
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    raise unknown_choice(f'end_of_document of {path}', name, special)
  for candidate in _USUAL_ENDS if name is None else (name,):
    if candidate in vocabulary:
      return vocabulary[candidate]
  raise UserError(
    f'{path} has no end-of-document token of a usual name ({", ".join(_USUAL_ENDS)}): name it '
    'with end_of_document.'
  )
