"""The table of options for people: `python run.py --help`, and docs/options.md.

python -m desloc_jax options > docs/options.md
"""

from collections.abc import Iterator, Sequence
import itertools
import textwrap

from desloc_jax import commands
from desloc_jax.options.effect import condition
from desloc_jax.options.table import ALLOWABLE, Option, OPTIONS
from desloc_jax.valid import expected

_WIDTH, _COLUMN = 100, 42
_RESTARTS = f"""\
when a restart may change it. always; workers: where their number changes, as it always may;
content: where the text that it names stays the same; else where --config.restore.allow has one of
its words, of {', '.join(ALLOWABLE)}."""


def main(argv: Sequence[str] | None = None) -> None:
  """Prints docs/options.md."""
  with commands.one_line_errors():
    commands.make_parser('desloc_jax options', __doc__ or '').parse_args(argv)
    print(options_page(), end='')


def options_help() -> str:
  """Returns the options by group, for `--help`."""
  lines = [f'options, each with its default, what it takes and, in brackets,\n{_RESTARTS}']
  for group, names in _groups():
    lines.append(f'\n{group}:')
    for name in names:
      row = OPTIONS[name]
      facts = f'{expected(row.kind, row.valid)} [{_restart(row)}]'
      lines += textwrap.wrap(
        f'{f"  --config.{name}={_default(row)}":{_COLUMN - 1}} {facts}',
        _WIDTH,
        subsequent_indent=' ' * _COLUMN,
        break_long_words=False,
      )
      lines += textwrap.wrap(
        _meaning(row), _WIDTH, initial_indent=' ' * 6, subsequent_indent=' ' * 6
      )
  return '\n'.join(lines)


def options_page() -> str:
  """Returns the options as a page of Markdown."""
  lines = [
    '# Options\n',
    'Each is given as `--config.NAME=VALUE`, or set by a file of `configs/`. This page is what',
    '`python -m desloc_jax options` prints; `python run.py --help` lists the same.\n',
    f'Behind `restart` stands {_RESTARTS}',
  ]
  for group, names in _groups():
    lines += [
      f'\n## {group}\n',
      '| option | default | takes | restart | meaning |',
      '|---' * 5 + '|',
    ]
    for name in names:
      row = OPTIONS[name]
      cells = (f'`{name}`', f'`{_default(row)}`', expected(row.kind, row.valid), _restart(row))
      lines.append(f'| {" | ".join([*cells, _meaning(row).replace("|", chr(92) + "|")])} |')
  return '\n'.join(lines) + '\n'


def _groups() -> Iterator[tuple[str, Iterator[str]]]:
  for group, names in itertools.groupby(OPTIONS, lambda name: name.rpartition('.')[0]):
    yield group or 'run', names


def _default(row: Option) -> str:
  return 'unset' if row.may_be_unset else repr(row.default)


def _restart(row: Option) -> str:
  return ', '.join(row.restart.split()) or 'never'


def _meaning(row: Option) -> str:
  where = ' and '.join(condition(word).meaning for word in row.counts.split())
  return f'{row.meaning}; counts where {where}' if where else row.meaning
