"""Tokenizers: text to token ids and back.

A tokenizer here never adds a token by itself: no beginning of text, no padding, no truncation. The
end-of-document id is put after each document by `desloc_jax.data.encoding`, and text that happens
to spell a special token ("<|endoftext|>") is encoded as ordinary text.
"""

import abc
from collections.abc import Mapping, Sequence
import functools
import hashlib
import json
import os
import re
from typing import Any, NamedTuple

import numpy as np
import tokenizers as hf

from desloc_jax.data import gpt2, tokenizer_files
from desloc_jax.errors import unknown_choice, UserError

END_OF_TEXT = '<|endoftext|>'
_USUAL_ENDS = (END_OF_TEXT, '<|end_of_text|>', '</s>', '<eos>', '<|eos|>', '[EOS]', '[SEP]')


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
  """

  keeps_bytes = True
  notes: Sequence[str] = ()

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

  def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
    as_bytes = (np.frombuffer(text.encode('utf-8'), np.uint8) for text in texts)
    return [Encoding(each.astype(self.dtype)) for each in as_bytes]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    end = END_OF_TEXT.encode()
    pieces = (end if i == self.end_of_document else bytes([i]) for i in map(int, ids))
    return b''.join(pieces).decode('utf-8', errors='replace')


class HuggingFaceTokenizer(Tokenizer):
  """Any tokenizer of the Hugging Face `tokenizers` library."""

  def __init__(self, name: str, content: Mapping[str, Any], end: str, definition: bytes):
    """Takes the content of a tokenizer.json and the special token that closes documents.

    Raises:
      Exception: of the library, which cannot load it.
    """
    content, notes = tokenizer_files.without_chance(content)
    tokenizer = hf.Tokenizer.from_str(json.dumps(content))
    tokenizer.encode_special_tokens = True  # The library's name for "as ordinary text".
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    end_of_document = vocabulary[tokenizer_files.hidden(end)]
    # The ids of a file may have holes: their count is not their bound.
    vocab_size = max(vocabulary.values()) + 1
    super().__init__(name, vocab_size, end_of_document, definition)
    self.notes = notes
    self.keeps_bytes = tokenizer_files.is_byte_level(content)
    self._complete = self.keeps_bytes and tokenizer_files.knows_all_bytes(content)
    self._may_drop = not self.keeps_bytes and tokenizer_files.may_drop_text(content)
    self._unknown_id = tokenizer_files.unknown_id(content)
    self._special = tokenizer_files.special_tokens(content)
    self._tokenizer = tokenizer

  @property
  def unknown_is_end(self) -> bool:
    """Whether text that the vocabulary lacks would end a document."""
    return self._unknown_id == self.end_of_document and not self._complete

  @functools.cached_property
  def token_bytes(self) -> np.ndarray:
    if self.keeps_bytes:
      count = tokenizer_files.byte_length
    else:  # Behind another token, since a decoder may strip what begins a text.
      first = next(i for i in range(self.vocab_size) if i != self.end_of_document)
      alone = len(self.decode([first]).encode())
      count = lambda token: self._decoded_bytes(token, first) - alone
    result = np.zeros(self.vocab_size, np.int64)
    for token, i in self._tokenizer.get_vocab(with_added_tokens=True).items():
      if token not in self._special:
        result[i] = max(0, count(token))
    for i, token in self._tokenizer.get_added_tokens_decoder().items():
      if not token.special:
        result[i] = len(token.content.encode())
    return result

  def _decoded_bytes(self, token: str, first: int) -> int:
    if re.fullmatch('<0x[0-9A-F]{2}>', token):  # A byte of a character that has no token.
      return 1 + len(self.decode([first]).encode())
    return len(self.decode([first, self._tokenizer.token_to_id(token)]).encode())

  def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
    # Places in the text take time: only where they tell what is missing.
    encode = self._tokenizer.encode_batch if self._may_drop else self._tokenizer.encode_batch_fast
    try:
      found = encode(list(texts), add_special_tokens=False)
      arrays = [np.array(each.ids, self.dtype) for each in found]
    except Exception as error:  # The library raises nothing narrower.
      raise UserError(f'Tokenizer {self.name} cannot encode the text: {error}') from error
    return [
      Encoding(ids, self._dropped_bytes(text, ids, each), self._count_unknown(ids))
      for text, ids, each in zip(texts, arrays, found, strict=True)
    ]

  def _dropped_bytes(self, text: str, ids: np.ndarray, encoding: hf.Encoding) -> int:
    if self.keeps_bytes and not self._complete:
      return len(text.encode()) - int(self.token_bytes[ids].sum())
    if not self._may_drop:
      return 0
    covered = np.zeros(len(text), bool)
    for start, stop in encoding.offsets:
      covered[start:stop] = True
    missing = (text[i] for i in np.flatnonzero(~covered).tolist())
    return sum(len(character.encode()) for character in missing if not character.isspace())

  def _count_unknown(self, ids: np.ndarray) -> int:
    return 0 if self._unknown_id is None else int(np.count_nonzero(ids == self._unknown_id))

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    text = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
    for name in self._special:
      text = text.replace(name, tokenizer_files.shown(name))
    return text


def token_dtype(vocab_size: int) -> np.dtype:
  """Returns the type that ids below `vocab_size` are stored in: uint16 or uint32."""
  return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def load_tokenizer(spec: str, end_of_document: str | None = None) -> Tokenizer:
  """Returns the tokenizer that `spec` names.

  Args:
    spec: 'bytes' (vocabulary 257), 'gpt2' (vocabulary 50,257) or the path of a Hugging Face
      `tokenizer.json`.
    end_of_document: the special token that closes a document, for a `tokenizer.json` where none has
      a usual name.

  Raises:
    UserError: `spec` is neither a name nor a readable tokenizer file, or the end-of-document token
      is none of its special tokens, or stands for unknown text too.
  """
  if spec in ('bytes', 'gpt2'):
    if end_of_document:
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
  return HuggingFaceTokenizer(name, json.loads(tokenizer.to_str()), END_OF_TEXT, ranks)


def _load_file(path: str, end_of_document: str | None) -> Tokenizer:
  with open(path, 'rb') as file:
    definition = file.read()
  try:
    content = tokenizer_files.parse(definition.decode('utf-8'))
  except Exception as error:  # The library raises nothing narrower.
    raise UserError(f'{path} is not a Hugging Face tokenizer.json: {error}') from error
  end = _find_end_of_document(path, content, end_of_document)
  definition += b'\0end of document %d' % tokenizer_files.special_tokens(content)[end]
  try:
    tokenizer = HuggingFaceTokenizer(os.path.basename(path), content, end, definition)
  except Exception as error:
    raise UserError(f'{path} cannot be used as a tokenizer: {error}') from error
  if tokenizer.unknown_is_end:
    raise UserError(
      f'{path}: {end!r} is also what unknown text becomes, so it cannot close documents; name '
      'another special token with end_of_document.'
    )
  return tokenizer


def _find_end_of_document(path: str, content: Mapping[str, Any], name: str | None) -> str:
  special = tokenizer_files.special_tokens(content)
  if name and name in tokenizer_files.vocabulary(content) and name not in special:
    raise UserError(
      f'end_of_document {name!r} is an ordinary token of {path}, which a text may hold; expected '
      f'one of its special tokens: {", ".join(special) or "none"}.'
    )
  if name and name not in special:
    raise unknown_choice(f'end_of_document of {path}', name, special)
  for candidate in (name,) if name else _USUAL_ENDS:
    if candidate in special:
      return candidate
  raise UserError(
    f'{path} has no end-of-document token of a usual name ({", ".join(_USUAL_ENDS)}) among its '
    f'special tokens ({", ".join(special) or "none"}): name one of them with '
    '--end_of_document, in a run data.end_of_document.'
  )
