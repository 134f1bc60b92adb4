"""Tokenizers of the Hugging Face `tokenizers` library."""

from collections.abc import Mapping, Sequence
import functools
import json
import re
from typing import Any

import numpy as np
import tokenizers as hf

from desloc_jax.data import tokenizer_files
from desloc_jax.data.tokenizers import Encoding, Tokenizer
from desloc_jax.errors import UserError


class HuggingFaceTokenizer(Tokenizer):
  """Any tokenizer of the Hugging Face `tokenizers` library."""

  def __init__(self, name: str, content: Mapping[str, Any], end: str, definition: bytes):
    """Takes the content of a tokenizer.json and the special token that closes documents.

    Raises:
      Exception: of the library, which cannot load it.
    """
    self._content, notes = tokenizer_files.without_chance(content)
    content = tokenizer_files.with_hidden_names(self._content)
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
  def content(self) -> dict[str, Any]:
    return self._content

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
