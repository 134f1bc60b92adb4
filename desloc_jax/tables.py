"""Tables as text, for what commands print."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]]) -> str:
  """Returns rows of cells as text, the first row as header: the first column to the left, the
  others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
  ]
  return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])
