"""Training sequences cut from a stream of tokens."""

import bisect
from collections.abc import Sequence
import itertools

import numpy as np

from desloc_jax.errors import UserError
from desloc_jax.valid import check_at_least

_CHUNK_TOKENS = 2**22  # Of an array in a file that are read at once.


class PackedSequences:
  """One split of one source as fixed-length sequences, a grain `RandomAccessDataSource`.

  The documents, each closed by its end-of-document id, form one long stream of tokens. Item i is
  int32 [seq_len + 1]: the tokens from i * seq_len on, one more than seq_len, so that the inputs are
  item[:-1] and the targets item[1:], and over an epoch each token but the stream's first is
  predicted exactly once, also across the border of two shards. Packing follows:

  * a document shorter than a sequence shares it with its neighbours, separated by the
    end-of-document id; a longer one spans several;
  * the stream's tail that is shorter than a sequence is dropped.

  Attributes:
    seq_len: tokens predicted by one item.
    vocab_size: every id is below it.
    tokens: length of the stream in tokens.
    documents: documents in the stream.
    text_bytes: their length in UTF-8 bytes.
    fingerprint: identifies the content: equal fingerprints mean equal items.
  """

  def __init__(
    self,
    arrays: Sequence[np.ndarray],
    *,
    label: str,
    names: Sequence[str],
    seq_len: int,
    vocab_size: int,
    documents: int,
    text_bytes: int,
    fingerprint: str,
  ):
    """Wraps a stream of token ids.

    Args:
      arrays: unsigned ids [tokens] that follow one another in the stream, in memory or a
        `shards.ShardTokens`.
      label: what to call the whole stream in an error message.
      names: what to call each array there.
      seq_len: see the class, like the arguments below.
      vocab_size: of the tokenizer.
      documents: in all arrays.
      text_bytes: in all arrays.
      fingerprint: of the arrays' content and the tokenizer; seq_len need not be part of it.

    Raises:
      UserError: there are fewer than seq_len + 1 tokens.
    """
    check_at_least(1, seq_len=seq_len)
    self._arrays = list(arrays)
    self._names = list(names)
    self._ends = list(itertools.accumulate(map(len, self._arrays)))
    self.tokens = self._ends[-1] if self._ends else 0
    if self.tokens < seq_len + 1:
      nearest = f', or a seq_len of at most {self.tokens - 1}' if self.tokens > 1 else ''
      raise UserError(
        f'{label} has {self.tokens} tokens, but one sequence of seq_len {seq_len} needs '
        f'{seq_len + 1}: give it more documents or another validation_fraction{nearest}.'
      )
    self.seq_len = seq_len
    self.vocab_size = vocab_size
    self.documents = documents
    self.text_bytes = text_bytes
    self.fingerprint = f'{fingerprint}/{seq_len}'

  def __len__(self) -> int:
    """Returns the number of sequences of an epoch."""
    return (self.tokens - 1) // self.seq_len

  def __getitem__(self, index: int) -> np.ndarray:
    """Returns sequence `index`, int32 [seq_len + 1].

    Raises:
      IndexError: there is no such sequence.
      UserError: it holds an id that is not below vocab_size; names the shard and the position.
    """
    if not 0 <= index < len(self):
      raise IndexError(f'sequence {index} of {len(self)}')
    start = index * self.seq_len
    sequence = self._read(start, start + self.seq_len + 1)
    if sequence.max() >= self.vocab_size:
      raise self._bad_token(start + int(np.argmax(sequence >= self.vocab_size)))
    return sequence.astype(np.int32)

  def sum_over_tokens(self, values: np.ndarray) -> int:
    """Returns the sum of values [vocab_size] of all tokens; reads the whole stream."""
    parts = (
      array[start : start + _CHUNK_TOKENS]
      for array in self._arrays
      for start in range(0, len(array), _CHUNK_TOKENS)
    )
    return sum(int(values[part].sum()) for part in parts)

  def __repr__(self) -> str:
    return f'PackedSequences({len(self)} of {self.seq_len} tokens, {self.fingerprint})'

  def _read(self, start: int, stop: int) -> np.ndarray:
    """Returns the stream's tokens [start, stop), which may lie in several arrays."""
    pieces = []
    while start < stop:
      i, offset = self._locate(start)
      pieces.append(self._arrays[i][offset : offset + stop - start])
      start += len(pieces[-1])
    return np.concatenate(pieces)

  def _locate(self, position: int) -> tuple[int, int]:
    """Returns the array that holds the stream's token at `position`, and its offset there."""
    i = bisect.bisect_right(self._ends, position)
    return i, position - self._ends[i] + len(self._arrays[i])

  def _bad_token(self, position: int) -> UserError:
    i, offset = self._locate(position)
    (token,) = self._arrays[i][offset : offset + 1]
    return UserError(
      f'{self._names[i]} has token id {token} at position {offset}, expected '
      f'ids below the vocabulary size {self.vocab_size}.'
    )
