"""What an evaluation reads of the held-out text, and what its losses say.

Each source is evaluated by itself, whole or by an even sample, and the losses are weighted
afterwards. With w_s the weights of the mixture (they sum to one), L_s the mean loss in nats a token
and B_s the UTF-8 bytes a token, of what was evaluated of source s, a text drawn from the mixture has
sum w_s L_s nats and sum w_s B_s bytes a token, so

  validation loss = sum w_s L_s
  bits per byte   = sum w_s L_s / (ln 2 * sum w_s B_s)

The end of a document is a token of no bytes. Neither the number of workers nor their own weights
change anything; another batch may change the last bits of a sequence's loss.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import math

import numpy as np

from desloc_jax.data import mixture
from desloc_jax.data.mixture import Sources
from desloc_jax.data.sequences import PackedSequences
from desloc_jax.data.tokenizers import Tokenizer
from desloc_jax.valid import check_at_least


@dataclasses.dataclass(frozen=True)
class Sample:
  """What is evaluated of one source.

  Attributes:
    name: of the source.
    weight: its share of the mixture.
    packed: all of its held-out sequences.
    indices: of those that are evaluated, int64 [sequences], rising.
    tokenizer: of the sequences.
  """

  name: str
  weight: float
  packed: PackedSequences
  indices: np.ndarray
  tokenizer: Tokenizer

  @functools.cached_property
  def bytes_per_token(self) -> float:
    """UTF-8 bytes of the text that the evaluated sequences predict, a token.

    Where a tokenizer changes the text, the bytes that its tokens stand for are scaled so that the
    whole split has those of its text.
    """
    token_bytes = self.tokenizer.token_bytes
    read = sum(int(token_bytes[self.packed[i][1:]].sum()) for i in self.indices.tolist())
    if not self.tokenizer.keeps_bytes:
      read *= self.packed.text_bytes / max(1, self.packed.sum_over_tokens(token_bytes))
    return read / (len(self.indices) * self.packed.seq_len)


class Validation:
  """The held-out sequences that every evaluation reads, source after source.

  Attributes:
    samples: of each source whose weight is above 0.
  """

  def __init__(self, sources: Sources, tokenizer: Tokenizer, limit: int | None = None):
    """Chooses the sequences; only `batches` and `bytes_per_token` read them.

    Args:
      sources: specs, of which name and weight count, with their held-out sequences.
      tokenizer: of all sources.
      limit: at most so many sequences, shared out by weight, at least one of each source; what a
        source lacks goes to the others. None: all.

    Raises:
      UserError: limit is below 1, or the weights are of no use.
    """
    if limit is not None:
      check_at_least(1, limit=limit)
    shared = [(dataclasses.replace(spec, worker_weights=()), packed) for spec, packed in sources]
    weights = mixture.check_sources(shared, workers=1)[:, 0]
    used = [(spec.name, packed) for (spec, packed), w in zip(sources, weights, strict=True) if w]
    shares = weights[weights > 0] / weights.sum()
    sizes = np.array([len(packed) for _, packed in used])
    counts = sizes if limit is None else share_out(limit, sizes, shares)
    self.samples = [
      Sample(name, float(share), packed, spread(len(packed), count), tokenizer)
      for (name, packed), share, count in zip(used, shares, counts.tolist(), strict=True)
    ]

  def batches(self, workers: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yields tokens int32 [workers, batch_size, seq_len + 1]; zeros fill the last batch."""
    check_at_least(1, workers=workers, batch_size=batch_size)
    ids = [(sample.packed, i) for sample in self.samples for i in sample.indices.tolist()]
    size = workers * batch_size
    for start in range(0, len(ids), size):
      rows = [packed[i] for packed, i in ids[start : start + size]]
      tokens = np.zeros((size, len(rows[0])), np.int32)
      tokens[: len(rows)] = rows
      yield tokens.reshape(workers, batch_size, -1)

  def by_source(self, losses: Sequence[np.ndarray]) -> dict[str, float]:
    """Returns source name -> mean loss, of float losses [workers, batch_size] of each batch."""
    each = np.concatenate([np.ravel(batch) for batch in losses]).astype(np.float64)
    ends = np.cumsum([len(sample.indices) for sample in self.samples])
    parts = np.split(each, ends)  # The last one is of what filled the last batch.
    return {
      sample.name: float(part.mean()) for sample, part in zip(self.samples, parts[:-1], strict=True)
    }

  def of_mixture(self, losses: Mapping[str, float]) -> float:
    """Returns the loss of the mixture, in nats a token, from those of its sources."""
    return math.fsum(sample.weight * losses[sample.name] for sample in self.samples)

  @property
  def bytes_per_token(self) -> float:
    """UTF-8 bytes a token of the mixture, as far as it is evaluated."""
    return math.fsum(sample.weight * sample.bytes_per_token for sample in self.samples)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
  """Returns a loss in nats a token as bits a byte; infinity for a text of no bytes."""
  return loss / math.log(2) / bytes_per_token if bytes_per_token else math.inf


def spread(size: int, count: int) -> np.ndarray:
  """Returns `count` different indices of `size`, int64: the middles of as many equal parts."""
  return (2 * np.arange(count, dtype=np.int64) + 1) * size // (2 * count)


def share_out(limit: int, sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
  """Returns how many of each of `sizes` are taken, in proportion to `shares` as far as they last.

  Args:
    limit: of them in all.
    sizes: at least 1, int [n].
    shares: above 0, float [n].

  Returns:
    int64 [n] from 1 to `sizes`, whose sum is `limit`, or the nearest sum that there can be.
  """
  total = min(max(limit, len(sizes)), int(sizes.sum()))
  low, high = 0.0, float(np.max(sizes / shares))
  for _ in range(200):  # Halves the range in which the number for a share of 1 lies.
    middle = (low + high) / 2
    enough = np.clip(middle * shares, 1, sizes).sum() >= total
    low, high = (low, middle) if enough else (middle, high)
  wanted = np.clip(high * shares, 1, sizes)
  counts = np.floor(wanted).astype(np.int64)
  most_cut_off = np.argsort(counts - wanted, kind='stable')
  counts[most_cut_off[: max(0, total - int(counts.sum()))]] += 1
  return counts
