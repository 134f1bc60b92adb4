"""The manifest of a folder of tokenised data: what its shards hold and how they were made."""

from collections.abc import Sequence
import dataclasses
import json
import os
import re
from typing import Any

from desloc_jax import files
from desloc_jax.data import splits
from desloc_jax.data.tokenizers import Tokenizer
from desloc_jax.errors import unknown_choice, UserError

MANIFEST = 'manifest.json'
_FORMAT = 'desloc_jax tokens'
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of tokens.

  Attributes:
    file: plain name inside the folder.
    split: 'train' or 'validation'.
    tokens: length of the array, end-of-document ids included.
    documents: documents in it.
    text_bytes: their length in UTF-8 bytes.
    max_token: the largest id.
    sha256: of the file, in hex.
  """

  file: str
  split: str
  tokens: int
  documents: int
  text_bytes: int
  max_token: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class TokenizerRecord:
  """The tokenizer that made the shards; see `Tokenizer` for the fields."""

  name: str
  fingerprint: str
  vocab_size: int
  end_of_document: int

  @classmethod
  def of(cls, tokenizer: Tokenizer) -> 'TokenizerRecord':
    """Returns the record of `tokenizer`."""
    fields = dataclasses.fields(cls)
    return cls(**{field.name: getattr(tokenizer, field.name) for field in fields})


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a folder of shards holds.

  Attributes:
    tokenizer: who made the ids.
    source: how the shards were made: the input, its selection and the shard size.
    validation_fraction: the fraction of documents held out.
    shards: in the order of their documents, each split counted from 0.
    dropped_bytes: of the texts, which the tokenizer dropped; see `encoding.EncodedDocument`.
    unknown: tokens that stand for text that the vocabulary lacks.
  """

  tokenizer: TokenizerRecord
  source: dict[str, Any]
  validation_fraction: float
  shards: tuple[Shard, ...] = ()
  dropped_bytes: int = 0
  unknown: int = 0

  def of_split(self, split: str) -> list[Shard]:
    """Returns the shards of `split` in order."""
    return [shard for shard in self.shards if shard.split == split]

  def totals(self) -> dict[str, dict[str, int]]:
    """Returns split -> shards, documents, tokens and text_bytes (UTF-8)."""
    return {split: _total(self.of_split(split)) for split in splits.SPLITS}


def write_manifest(path: str, manifest: Manifest) -> None:
  """Writes `manifest` as JSON, atomically."""
  content = {'format': _FORMAT, 'version': _VERSION, **dataclasses.asdict(manifest)}
  content['totals'] = manifest.totals()
  with files.atomic_write(path) as file:
    file.write((json.dumps(content, indent=2) + '\n').encode())


def read_manifest(folder: str, name: str = MANIFEST) -> Manifest:
  """Returns the manifest of `folder`.

  Raises:
    UserError: it is missing, is no manifest of this version, or names a file outside the folder or
      a token id outside the vocabulary.
  """
  path = os.path.join(folder, name)
  try:
    with open(path, 'rb') as file:
      content = json.load(file)
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{path} is no readable manifest: {error}') from error
  found = (content.get('format'), content.get('version')) if isinstance(content, dict) else content
  if found != (_FORMAT, _VERSION):
    raise UserError(f'{path} is of format {found!r:.60}, expected {(_FORMAT, _VERSION)!r}.')
  if not isinstance(content.get('shards'), list):
    raise UserError(f'{path}: shards is {content.get("shards")!r:.60}, expected a list.')
  content['tokenizer'] = _parse(TokenizerRecord, content.get('tokenizer'), f'{path}: tokenizer')
  content['shards'] = tuple(
    _parse(Shard, shard, f'{path}: shard {i}') for i, shard in enumerate(content['shards'])
  )
  manifest = _parse(Manifest, content, path)
  for shard in manifest.shards:
    _check_shard(shard, manifest.tokenizer.vocab_size, path)
  return manifest


def _parse(cls: type, content: Any, place: str) -> Any:
  """Returns the dataclass `cls` with the fields of a JSON object, checked for their types."""
  if not isinstance(content, dict):
    raise UserError(f'{place} is {content!r:.60}, expected a JSON object.')
  values = {}
  for field in dataclasses.fields(cls):
    default = None if field.default is dataclasses.MISSING else field.default
    value = values[field.name] = content.get(field.name, default)
    expected = getattr(field.type, '__origin__', field.type)  # dict for dict[str, Any].
    if isinstance(value, bool) or not isinstance(
      value, int | float if expected is float else expected
    ):
      raise UserError(f'{place}: {field.name} is {value!r:.60}, expected {expected.__name__}.')
  return cls(**values)


def _check_shard(shard: Shard, vocab_size: int, place: str) -> None:
  if shard.split not in splits.SPLITS:
    raise unknown_choice(f'{place}: split', shard.split, splits.SPLITS)
  if not re.fullmatch(r'\w[\w.-]*\.npy', shard.file):
    raise UserError(f'{place}: shard file {shard.file!r} is not a plain .npy name in the folder.')
  if min(shard.tokens, shard.documents, shard.text_bytes) < 1:
    raise UserError(
      f'{place}: shard {shard.file} has {shard.tokens} tokens, {shard.documents} documents and '
      f'{shard.text_bytes} text_bytes, expected at least 1 of each.'
    )
  if not 0 <= shard.max_token < vocab_size:
    raise UserError(
      f'{place}: shard {shard.file} has token id {shard.max_token}, expected ids below the '
      f'vocabulary size {vocab_size}.'
    )


def _total(shards: Sequence[Shard]) -> dict[str, int]:
  counts = {
    name: sum(getattr(shard, name) for shard in shards)
    for name in ('documents', 'tokens', 'text_bytes')
  }
  return {'shards': len(shards), **counts}
