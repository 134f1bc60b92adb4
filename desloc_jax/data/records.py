"""Reading the records of one file or Hugging Face dataset, whatever its format.

A record is a pair (place, fields): `place` says where it stands, for an error message and as a
default id ('books.jsonl:17'), and `fields` maps names to values.
"""

from collections.abc import Iterator, Mapping
import gzip
import json
import lzma
import os
from typing import Any
import zlib

import pyarrow.parquet as pq

from desloc_jax.errors import unknown_choice, UserError

Record = tuple[str, Mapping[str, Any]]

_OPENERS = {'.jsonl': open, '.gz': gzip.open, '.xz': lzma.open}
_DAMAGE = (
  OSError,
  EOFError,
  MemoryError,
  lzma.LZMAError,
  zlib.error,
)  # gzip.BadGzipFile is an OSError.
_PARQUET_ROWS = 1024  # Rows held in memory at once.

SUFFIXES = ('.txt', '.jsonl', '.jsonl.gz', '.jsonl.xz', '.parquet')


def read_records(path: str, columns: frozenset[str]) -> Iterator[Record]:
  """Yields the records of a file in its order; the format follows from the suffix.

  A .txt file is one record with the field `text`; a line of JSON Lines and a row of Parquet are one
  each.

  Args:
    path: a file whose name ends in one of `SUFFIXES`.
    columns: the fields that the caller will read; of a Parquet file no others but `id` are loaded.

  Raises:
    UserError: the suffix is unknown, or the file is unreadable, damaged, not UTF-8, has a line that
      is not a JSON object or lacks a column.
  """
  if path.endswith('.txt'):
    return _read_text(path)
  if path.endswith('.parquet'):
    return _read_parquet(path, columns)
  if path.endswith(SUFFIXES):
    return _read_json_lines(path)
  name = os.path.basename(path)
  raise unknown_choice(f'file type of {path}:', name[name.find('.') :], SUFFIXES)


def read_hugging_face(spec: str) -> Iterator[Record]:
  """Yields the rows of 'hf:NAME[:CONFIG[:SPLIT]]', streamed; the split is 'train' by default.

  Raises:
    UserError: the `datasets` library is missing, or the dataset cannot be opened (no network, no
      such name, configuration or split).
  """
  name, config, split = (spec.removeprefix('hf:').split(':', 2) + ['', ''])[:3]
  try:
    import datasets  # Optional, and slow to import.
  except ImportError as error:
    raise UserError(f'{spec} needs the Hugging Face library: pip install datasets') from error
  try:
    rows = datasets.load_dataset(name, config or None, split=split or 'train', streaming=True)
    for number, row in enumerate(rows):
      yield f'{spec}, row {number}', row
  except Exception as error:  # The library's errors have no common class.
    raise UserError(
      f'{spec} cannot be read ({type(error).__name__}: {error}). Expected '
      'hf:NAME[:CONFIG[:SPLIT]] and a network connection.'
    ) from error


def _read_text(path: str) -> Iterator[Record]:
  try:
    with open(path, 'rb') as file:
      text = file.read().decode('utf-8')
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error}') from error
  except UnicodeDecodeError as error:
    line = error.object.count(b'\n', 0, error.start) + 1
    raise UserError(f'{path}, line {line} is not UTF-8: {error.reason}') from error
  yield path, {'text': text}


def _read_json_lines(path: str) -> Iterator[Record]:
  number = 0
  try:
    with _OPENERS[os.path.splitext(path)[1]](path, 'rb') as file:
      for number, line in enumerate(file, 1):
        if line.strip():
          yield f'{path}:{number}', _parse_line(line, f'{path}, line {number}')
  except _DAMAGE as error:
    raise UserError(f'{path} is unreadable or damaged after line {number}: {error}') from error


def _parse_line(line: bytes, place: str) -> Mapping[str, Any]:
  try:
    fields = json.loads(line.decode('utf-8'))
  except UnicodeDecodeError as error:
    raise UserError(f'{place} is not UTF-8: {error.reason} at byte {error.start}') from error
  except json.JSONDecodeError as error:
    raise UserError(f'{place} is not JSON: {error.msg} at column {error.colno}') from error
  except (ValueError, RecursionError) as error:  # Thousands of digits or of brackets.
    raise UserError(f'{place} cannot be read: {error}') from error
  if not isinstance(fields, dict):
    raise UserError(f'{place} is a JSON {type(fields).__name__}, expected an object')
  return fields


def _read_parquet(path: str, columns: frozenset[str]) -> Iterator[Record]:
  number = 0
  try:
    with pq.ParquetFile(path) as file:
      names = file.schema_arrow.names
      if missing := columns.difference(names):
        raise unknown_choice(f'column of {path}', min(missing), names)
      wanted = [name for name in names if name in columns | {'id'}]
      for batch in file.iter_batches(_PARQUET_ROWS, columns=wanted):
        for fields in batch.to_pylist():
          yield f'{path}:{number}', fields
          number += 1
  except UserError:
    raise
  except Exception as error:  # Of Arrow, and of Python where a damaged value has no Python value.
    raise UserError(f'{path} is unreadable or damaged after row {number}: {error}') from error
