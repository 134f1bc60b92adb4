"""The on-disk format of tokenised data: a folder of shards and a manifest.

`train_00000.npy`, `validation_00000.npy`, ... are 1-D arrays of token ids (uint16 where the
vocabulary fits, else uint32) in NumPy's format, of which only what is asked for is read. A shard
holds whole documents, one after another, each followed by the end-of-document id. `manifest.json` is
written last, so a folder that has one is complete.
"""

from collections.abc import Sequence
from concurrent import futures
import hashlib
import os

import numpy as np
import tqdm

from desloc_jax import files
from desloc_jax.data.encoding import EncodedDocument
from desloc_jax.data.manifest import Manifest, Shard
from desloc_jax.data.tokenizers import token_dtype
from desloc_jax.errors import UserError

_VERIFY_THREADS = 8


def write_shard(folder: str, name: str, documents: Sequence[EncodedDocument]) -> Shard:
  """Writes `documents`, all of one split, as the file `name` and returns its record."""
  tokens = np.concatenate([document.tokens for document in documents])
  path = os.path.join(folder, name)
  with files.atomic_write(path) as file:
    np.save(file, tokens, allow_pickle=False)
  return Shard(
    file=name,
    split=documents[0].split,
    tokens=len(tokens),
    documents=len(documents),
    text_bytes=sum(document.text_bytes for document in documents),
    max_token=int(tokens.max()),
    sha256=_sha256(path),
  )


class ShardTokens:
  """The token ids of a shard, read from its file as they are asked for.

  Not memory-mapped: where a file was cut off meanwhile, or its disk fails, a map would end the process
  by SIGBUS without a word.
  """

  def __init__(self, path: str, count: int, offset: int, dtype: np.dtype):
    """Opens `path`, in which `count` ids of `dtype` begin at byte `offset`."""
    self._file = open(path, 'rb', buffering=0)  # Closed with the object.
    self._count, self._offset, self._dtype = count, offset, dtype

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, part: slice) -> np.ndarray:
    """Returns consecutive ids.

    Raises:
      UserError: they cannot be read any more.
    """
    start, stop, _ = part.indices(self._count)
    ids = np.empty(max(0, stop - start), self._dtype)
    left, place = memoryview(ids).cast('B'), self._offset + start * self._dtype.itemsize
    try:
      while left and (count := os.preadv(self._file.fileno(), [left], place)):
        left, place = left[count:], place + count
    except OSError as error:
      raise UserError(f'Shard {self._file.name} cannot be read: {error.strerror}.') from error
    if left:
      raise UserError(
        f'Shard {self._file.name} was cut off after it was opened: it ends before token {stop:,} of '
        f'{self._count:,}.'
      )
    return ids


def open_shard(folder: str, shard: Shard, vocab_size: int) -> ShardTokens:
  """Returns the shard's token ids [tokens].

  Raises:
    UserError: the file is missing, truncated or not what the manifest says.
  """
  path = os.path.join(folder, shard.file)
  try:
    tokens = np.lib.format.open_memmap(path, mode='r')  # Unpickles nothing, opens no .npz.
  except Exception as error:  # A damaged header is Python that may fail in any way.
    raise UserError(f'Shard {path} is missing or damaged: {error}') from error
  expected = ((shard.tokens,), token_dtype(vocab_size))
  if (tokens.shape, tokens.dtype) != expected:
    raise UserError(
      f'Shard {path} is an array {tokens.shape} of {tokens.dtype}, expected {expected[0]} of '
      f'{expected[1]} by its manifest.'
    )
  if (size := os.path.getsize(path)) != (whole := tokens.offset + tokens.nbytes):
    raise UserError(f'Shard {path} has {size} bytes, expected {whole} by its manifest.')
  return ShardTokens(path, len(tokens), tokens.offset, tokens.dtype)


def verify_shards(
  folder: str, manifest: Manifest, split: str | None = None, progress: bool = True
) -> None:
  """Reads every shard, or those of one split, and compares its sha256 with the manifest's.

  Raises:
    UserError: a shard is missing, truncated or changed; the message names the first such file.
  """
  shards = manifest.shards if split is None else manifest.of_split(split)

  def verify(shard: Shard) -> None:
    open_shard(folder, shard, manifest.tokenizer.vocab_size)
    path = os.path.join(folder, shard.file)
    if (digest := _sha256(path)) != shard.sha256:
      raise UserError(f'Shard {path} was changed: its sha256 is {digest}, expected {shard.sha256}.')

  with futures.ThreadPoolExecutor(_VERIFY_THREADS) as pool:
    checks = pool.map(verify, shards)
    # tqdm shows nothing where standard error is no terminal (disable=None).
    for _ in tqdm.tqdm(
      checks, 'verify', len(shards), unit='shard', leave=False, disable=None if progress else True
    ):
      pass


def _sha256(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
