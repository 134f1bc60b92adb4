"""Reading the records of one file or Hugging Face dataset, whatever its format.

A record is a pair (place, fields): `place` says where it stands, for an error message and as a
default id ('books.jsonl:17'), and `fields` maps names to values. In place of the fields of a record
that cannot be read stands the UserError that says why.

Arrow is imported by what reads its files: its import begins a thread, whose heap other threads would
share from then on, see `hosts.host_memory`.
"""

import bz2
import codecs
from collections.abc import Iterable, Iterator, Mapping
import gzip
import io
import itertools
import json
import lzma
import os
from typing import Any, BinaryIO
import zlib

from desloc_jax.errors import unknown_choice, UserError

Record = tuple[str, Mapping[str, Any] | UserError]

_DAMAGE = (
  OSError,
  EOFError,
  MemoryError,
  lzma.LZMAError,
  zlib.error,
)  # gzip.BadGzipFile is an OSError.
_ROWS = 1024  # Rows of a table held in memory at once.
_OTHER_UNICODE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32 begins with the first.


def read_records(path: str, columns: frozenset[str]) -> Iterator[Record]:
  """Yields the records of a file in its order; the format follows from the suffix, in any case.

  A .txt file is one record with the field `text`. A line of JSON Lines, an element of a JSON array
  and a row of Parquet or Arrow are one each. A byte order mark of UTF-8 is no part of the text.

  Args:
    path: a file that `is_readable`.
    columns: the fields that the caller will read; of a table no others but `id` are loaded.

  Raises:
    UserError: the suffix is unknown, or the file is unreadable, damaged, or not of UTF-8 altogether,
      or a table lacks a column.
  """
  suffix, opener = _format(path)
  if suffix in _TABLES:
    return _read_table(path, columns, _TABLES[suffix])
  if suffix in _TEXTS:
    return _read_file(path, opener, _TEXTS[suffix])
  _, dot, suffix = os.path.basename(path).partition('.')
  raise unknown_choice(f'file type of {path}:', dot + suffix, _SUFFIXES)


def is_readable(path: str) -> bool:
  """Says whether the name of a file ends in a suffix that `read_records` knows."""
  return _format(path)[0] in _TEXTS | _TABLES


def read_hugging_face(spec: str) -> Iterator[Record]:
  """Yields the rows of 'hf:NAME[@REVISION][:CONFIG[:SPLIT]]', streamed; the split is 'train' by default.

  Raises:
    UserError: the `datasets` library is missing, or the dataset cannot be opened (no network, no
      such name, configuration or split).
  """
  name, config, split = (spec.removeprefix('hf:').split(':', 2) + ['', ''])[:3]
  name, _, revision = name.partition('@')
  options = {'revision': revision} if revision else {}
  try:
    import datasets  # Optional, and slow to import.
  except ImportError as error:
    raise UserError(f'{spec} needs the Hugging Face library: pip install datasets') from error
  try:
    rows = datasets.load_dataset(
      name, config or None, split=split or 'train', streaming=True, **options
    )
    for number, row in enumerate(rows):
      yield f'{spec}, row {number}', row
  except Exception as error:  # The library's errors have no common class.
    raise UserError(
      f'{spec} cannot be read ({type(error).__name__}: {error}). Expected '
      'hf:NAME[@REVISION][:CONFIG[:SPLIT]] and a network connection.'
    ) from error


def _format(path: str) -> tuple[str, Any]:
  """Returns the suffix of a file without that of its compression, and what opens it."""
  stem, suffix = os.path.splitext(os.path.basename(path).lower())
  if suffix not in _OPENERS:
    return suffix, open
  return os.path.splitext(stem)[1], _OPENERS[suffix]


def _open_zstandard(path: str, mode: str) -> BinaryIO:
  import pyarrow as pa

  return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(path, mode), 'zstd'))


def _read_file(path: str, opener, read) -> Iterator[Record]:
  """Yields the records of a file that is text, perhaps compressed."""
  place = path
  try:
    with opener(path, 'rb') as file:
      for place, fields in read(path, file):
        yield place, fields
  except _DAMAGE as error:
    raise UserError(
      f'{path} is unreadable or damaged after {_last(place, path)}: {error}'
    ) from error


def _last(place: str, path: str) -> str:
  return f'line {place.removeprefix(path + ":") if place != path else 0}'


def _read_text(path: str, file: BinaryIO) -> Iterator[Record]:
  content = file.read()
  try:
    _check_unicode(content, path)
    yield path, {'text': content.decode('utf-8-sig')}
  except UnicodeDecodeError as error:
    line = error.object.count(b'\n', 0, error.start) + 1
    yield path, UserError(f'{path}, line {line} is not UTF-8: {error.reason}')
  except UserError as error:
    yield path, error


def _read_json_lines(path: str, lines: Iterable[bytes], first: int = 1) -> Iterator[Record]:
  for number, line in enumerate(lines, first):
    if number == 1:
      _check_unicode(line, path)
    if line.strip():
      yield f'{path}:{number}', _try_parse(line, f'{path}, line {number}')


def _read_json(path: str, file: BinaryIO) -> Iterator[Record]:
  """Yields the elements of an array, a lone object, or the objects of JSON Lines."""
  blank, start = 0, b''
  for line in file:
    _check_unicode(line, path)
    if start := line.removeprefix(codecs.BOM_UTF8).lstrip():
      break
    blank += 1
  if not start:
    return
  is_line = start[:1] == b'{' and isinstance(_try_parse(start, path), Mapping)
  if is_line:
    yield from _read_json_lines(path, itertools.chain([start], file), blank + 1)
    return
  whole = _try_parse(start + file.read(), path, kind=(dict, list))
  if isinstance(whole, UserError):
    raise whole
  for number, fields in enumerate(whole if isinstance(whole, list) else [whole]):
    place = f'{path}, element {number}'
    yield place, fields if isinstance(fields, dict) else _no_object(fields, place)


def _try_parse(content: bytes, place: str, kind: type | tuple[type, ...] = dict) -> Any:
  """Returns what JSON says, or the UserError for what is no JSON or not of a kind."""
  try:
    value = json.loads(content.decode('utf-8-sig'))
  except UnicodeDecodeError as error:
    return UserError(f'{place} is not UTF-8: {error.reason} at byte {error.start}')
  except json.JSONDecodeError as error:
    return UserError(f'{place} is not JSON: {error.msg} at column {error.colno}')
  except (ValueError, RecursionError) as error:  # Thousands of digits or of brackets.
    return UserError(f'{place} cannot be read: {error}')
  return value if isinstance(value, kind) else _no_object(value, place)


def _no_object(value: Any, place: str) -> UserError:
  return UserError(f'{place} is a JSON {type(value).__name__}, expected an object')


def _check_unicode(start: bytes, path: str) -> None:
  if start.startswith(_OTHER_UNICODE):
    raise UserError(
      f'{path} begins with a byte order mark of UTF-16 or UTF-32, expected UTF-8; '
      '`iconv -f UTF-16 -t UTF-8` converts it.'
    )


def _read_table(path: str, columns: frozenset[str], batches_of) -> Iterator[Record]:
  """Yields the rows of a table whose `batches_of` are (names, a function of those wanted)."""
  import pyarrow as pa

  number = 0
  try:
    with pa.OSFile(path) as file:
      names, read = batches_of(file)
      if missing := columns.difference(names):
        raise unknown_choice(f'column of {path}', min(missing), names)
      for batch in read([name for name in names if name in columns | {'id'}]):
        for fields in batch.to_pylist():
          yield f'{path}:{number}', fields
          number += 1
  except UserError:
    raise
  except Exception as error:  # Of Arrow, and of Python where a damaged value has no Python value.
    raise UserError(f'{path} is unreadable or damaged after row {number}: {error}') from error


def _parquet_batches(file):
  import pyarrow.parquet as pq

  table = pq.ParquetFile(file)
  return table.schema_arrow.names, lambda wanted: table.iter_batches(_ROWS, columns=wanted)


def _arrow_batches(file):
  """Of the file format, or the stream format that `datasets` saves."""
  import pyarrow as pa

  is_file = file.read(6) == b'ARROW1'
  file.seek(0)
  table = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
  batches = map(table.get_batch, range(table.num_record_batches)) if is_file else table

  def read(wanted: list[str]) -> Iterator:
    for batch in batches:
      for start in range(0, batch.num_rows, _ROWS):
        yield batch.slice(start, _ROWS).select(wanted)

  return table.schema.names, read


_TEXTS = {
  '.txt': _read_text,
  '.jsonl': _read_json_lines,
  '.ndjson': _read_json_lines,
  '.json': _read_json,
}
_TABLES = {'.parquet': _parquet_batches, '.arrow': _arrow_batches}
_OPENERS = {
  '.gz': gzip.open,
  '.xz': lzma.open,
  '.bz2': bz2.open,
  '.zst': _open_zstandard,
}
_SUFFIXES = [*_TABLES, *(text + packed for text in _TEXTS for packed in ('', *_OPENERS))]
READABLE = f'{", ".join(_TEXTS)} (or these with {", ".join(_OPENERS)}), {" or ".join(_TABLES)}'
