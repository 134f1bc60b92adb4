"""Opening the sources that a configuration names: prepared shards, or text tokenised at start."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import os

import numpy as np
import tqdm

from desloc_jax.data import encoding, manifest, shards, splits
from desloc_jax.data.reading import documents
from desloc_jax.data.sequences import PackedSequences
from desloc_jax.data.tokenizers import Tokenizer
from desloc_jax.errors import UserError

_TEXTS_KEPT = 8  # Tokenised texts that stay in memory for the opening of another split.


@dataclasses.dataclass(frozen=True)
class SourceSpec:
  """A source of training text as a configuration names it.

  Attributes:
    name: for messages and metrics; different for every source.
    path: a folder made by `desloc_jax.data.prepare`, or a `path` of `read_documents`.
    weight: how often it is drawn from, in proportion to the other sources' weights.
    worker_weights: empty where all workers read alike; else a factor on `weight` for each worker,
      and a worker of factor 0 never sees the source.
    where: of `read_documents`.
  """

  name: str
  path: str
  weight: float = 1.0
  worker_weights: tuple[float, ...] = ()
  where: str = ''


def open_source(
  path: str,
  tokenizer: Tokenizer,
  split: str,
  seq_len: int,
  validation_fraction: float,
  where: str = '',
  verify: bool = True,
  text_column: str = 'text',
  on_bad: str = 'error',
) -> PackedSequences:
  """Opens one split of a source.

  Text is tokenised into memory, once in a process for all its splits.

  Args:
    path: a folder made by `desloc_jax.data.prepare`, or a `path` of `read_documents`.
    tokenizer: that the model is trained with.
    split: 'train' or 'validation'.
    seq_len: tokens predicted by one sequence.
    validation_fraction: of a text's documents held out; a prepared folder keeps the one that it was
      prepared with.
    where: of `read_documents`, for text only.
    verify: whether to compare the sha256 of a prepared folder's shards with its manifest.
    text_column: of `read_documents`, for text only.
    on_bad: of `read_documents`, for text only.

  Raises:
    UserError: the source cannot be read, was prepared with another tokenizer, or its split has not
      even one sequence.
  """
  splits.check_split(split)
  splits.check_validation_fraction(validation_fraction)
  if os.path.exists(os.path.join(path, manifest.MANIFEST)):
    if where:
      raise UserError(
        f'{path} is already tokenised, so where={where!r} cannot select from it: give it to '
        'desloc_jax.data.prepare.'
      )
    return _open_prepared(path, tokenizer, split, seq_len, verify)
  text = _tokenise(path, where, text_column, on_bad, tokenizer, validation_fraction)[split]
  return PackedSequences(
    [text.tokens],
    label=f'{path} ({split})',
    names=[f'{path} ({split})'],
    seq_len=seq_len,
    vocab_size=tokenizer.vocab_size,
    documents=text.documents,
    text_bytes=text.text_bytes,
    fingerprint=_hash(hashlib.sha256(text.tokens).hexdigest(), tokenizer.fingerprint),
  )


def fingerprint(sources: Sequence[tuple[SourceSpec, PackedSequences]]) -> str:
  """Returns a sha256 in hex of the sources' names, content, tokenizer and seq_len.

  A run that is resumed compares it to refuse changed data. Paths and weights are not part of it: a
  folder may move and a mixture may be changed on purpose.
  """
  return _hash(*(part for spec, packed in sources for part in (spec.name, packed.fingerprint)))


def _open_prepared(
  folder: str, tokenizer: Tokenizer, split: str, seq_len: int, verify: bool
) -> PackedSequences:
  found = manifest.read_manifest(folder)
  if found.tokenizer.fingerprint != tokenizer.fingerprint:
    raise UserError(
      f'{folder} was prepared with tokenizer {found.tokenizer.name} (fingerprint '
      f'{found.tokenizer.fingerprint}), but the configured one is {tokenizer.name} (fingerprint '
      f'{tokenizer.fingerprint}).{_other_end(found.tokenizer, tokenizer)}'
    )
  if verify:
    shards.verify_shards(folder, found, split)
  members = found.of_split(split)
  total = found.totals()[split]
  return PackedSequences(
    [shards.open_shard(folder, shard, tokenizer.vocab_size) for shard in members],
    label=f'{folder} ({split})',
    names=[os.path.join(folder, shard.file) for shard in members],
    seq_len=seq_len,
    vocab_size=tokenizer.vocab_size,
    documents=total['documents'],
    text_bytes=total['text_bytes'],
    fingerprint=_hash(*(shard.sha256 for shard in members), tokenizer.fingerprint),
  )


def _other_end(before: manifest.TokenizerRecord, now: Tokenizer) -> str:
  """Returns a hint where the end of a document may be all that differs."""
  same = (before.name, before.vocab_size) == (now.name, now.vocab_size)
  if not same or before.end_of_document == now.end_of_document:
    return ''
  ends = [repr(now.decode([end])) for end in (before.end_of_document, now.end_of_document)]
  return f' Its documents end in {ends[0]}, not {ends[1]}: set data.end_of_document={ends[0]}.'


@dataclasses.dataclass(frozen=True)
class _TokenisedText:
  tokens: np.ndarray
  documents: int
  text_bytes: int


@functools.lru_cache(_TEXTS_KEPT)
def _tokenise(
  path: str,
  where: str,
  text_column: str,
  on_bad: str,
  tokenizer: Tokenizer,
  validation_fraction: float,
) -> dict[str, _TokenisedText]:
  """Returns each split of a text in memory."""
  read = documents.read_documents(path, where, text_column, on_bad)
  texts = (document.text for document in read)
  members = {split: [] for split in splits.SPLITS}
  losses = encoding.Losses(path, tokenizer.name)
  # tqdm shows nothing where standard error is no terminal (disable=None).
  with tqdm.tqdm(desc=f'tokenise {path}', unit='document', leave=False, disable=None) as bar:
    for batch in encoding.batch_texts(texts):
      for document in encoding.encode_documents(batch, tokenizer, validation_fraction):
        members[document.split].append(document)
        losses.add(document)
      bar.update(len(batch))
  if not any(members.values()):
    raise UserError(f'{path} has no document (where={where!r}).')
  for line in losses.finish():
    documents.warn(line)
  return {
    split: _TokenisedText(
      np.concatenate([np.empty(0, tokenizer.dtype), *(d.tokens for d in encoded)]),
      len(encoded),
      sum(document.text_bytes for document in encoded),
    )
    for split, encoded in members.items()
  }


def _hash(*parts: str) -> str:
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
