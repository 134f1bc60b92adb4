"""The table of options for people: `python run.py --help`, and docs/options.md."""

from desloc_jax.options.table import ALLOWABLE, Option, OPTIONS
from desloc_jax.valid import expected

_RESTARTS = f"""\
In brackets: when a restart may change the option. [always]; [workers]: where their number changes,
as it always may; [content]: where the text that it names stays the same; otherwise where
--config.restore.allow has one of the words, of {', '.join(ALLOWABLE)}."""


def options_help() -> str:
  """Returns the options by group, for `--help`."""
  lines, group = [f'options, each with its default.\n{_RESTARTS}'], None
  for name, row in OPTIONS.items():
    if (head := name.rpartition('.')[0]) != group:
      lines.append(f'\n{head or "run"}:')
      group = head
    lines.append(
      f'  --config.{name}={_default(row)}  {expected(row.kind, row.valid)}  {_restart(row)}'
    )
    lines.append(f'      {row.meaning}')
  return '\n'.join(lines)


def _default(row: Option) -> str:
  return 'unset' if row.may_be_unset else repr(row.default)


def _restart(row: Option) -> str:
  return f'[{", ".join(row.restart.split()) or "never"}]'
