"""Refuses configurations that lack an option, have one too many, or one of another type."""

from collections.abc import Iterator, Mapping
import re

from ml_collections import config_dict

from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.options.table import OPTIONS

_TYPES = {
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  bool: 'True or False',
  tuple: 'numbers in parentheses',
}


def check_types(config: config_dict.ConfigDict) -> None:
  """Checks that the options are there, each with a value of its type, and no others."""
  present = dict(_leaves(config))
  sources = {n.rpartition('.')[0] for n in present if n.startswith('data.sources.')}
  required = [name for name in OPTIONS if not name.startswith('data.sources.')]
  required += [f'{source}.path' for source in sources or ['data.sources.text']]
  if missing := [name for name in required if name not in present]:
    raise UserError(
      f'the config lacks {", ".join(missing)}; begin it with default_config() as configs/ do.'
    )
  for name, value in present.items():
    table_name = re.sub(r'^data\.sources\.[^.]*', 'data.sources.text', name)
    if table_name not in OPTIONS:
      raise unknown_choice('option', name, OPTIONS)
    default = OPTIONS[table_name][0]
    kind = default if isinstance(default, type) else type(default)
    if not _is_of_type(value, kind) and not (value is None and isinstance(default, type)):
      raise UserError(f'{name} is {_shown(value)}; expected {_TYPES[kind]}.')


def _leaves(node: Mapping[str, object], prefix: str = '') -> Iterator[tuple[str, object]]:
  for key, value in node.items():
    if isinstance(value, Mapping | config_dict.ConfigDict) and value:
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _is_of_type(value: object, kind: type) -> bool:
  if kind is tuple:
    is_number = lambda x: _is_of_type(x, int) or _is_of_type(x, float)
    return isinstance(value, tuple) and all(map(is_number, value))
  if kind is int and isinstance(value, int):  # Python's have no limit: their text may have one.
    return not isinstance(value, bool) and -(2**63) <= value < 2**63
  return isinstance(value, kind)


def _shown(value: object) -> str:
  try:
    return f'{value!r:.60}'
  except ValueError:
    return 'a number of thousands of digits'
