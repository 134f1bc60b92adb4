"""What a value may be: its type, and which values of that type."""

from collections.abc import Callable, Collection
import math
from typing import Any, NamedTuple

from desloc_jax.errors import unknown_choice, UserError

LIMIT = 2**31  # Of the integers that steps and sizes are counted in on devices.
FLOAT32_LIMIT = 2.0**128

_TYPES = {
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  bool: 'True or False',
  tuple: 'numbers in parentheses',
}


class Valid(NamedTuple):
  """Which values of its type are taken."""

  fits: Callable[[Any], bool]
  words: str = ''  # Behind those of the type: '>= 1'.
  choices: Collection[str] = ()  # Instead: the names that there are.


def at_least(least: float, limit: float = LIMIT) -> Valid:
  """Numbers from `least` on, below `limit`."""
  power = math.frexp(limit)[1] - 1
  shown = f'2**{power}' if limit == 2**power else limit
  return Valid(lambda x: least <= x < limit, f'>= {least}, below {shown}')


def between(least: float, most: float) -> Valid:
  """Numbers from `least` to `most`."""
  return Valid(lambda x: least <= x <= most, f'from {least} to {most}')


def one_of(choices: Collection[str]) -> Valid:
  """One of these names."""
  return Valid(lambda x: x in choices, choices=tuple(choices))


ANY = Valid(lambda _: True)
NOT_NEGATIVE = at_least(0, FLOAT32_LIMIT)
POSITIVE = Valid(lambda x: 0 < x < math.inf, 'above 0, finite')
ABOVE_ONE = Valid(lambda x: 1 < x < FLOAT32_LIMIT, 'above 1, below 2**128')
ABOVE_ONE_OR_ZERO = Valid(lambda x: x == 0 or 1 < x < math.inf, 'above 1 and finite, or 0')
BELOW_ONE = Valid(lambda x: 0 <= x < 1, 'in [0, 1)')
SHARE = Valid(lambda x: 0 <= x <= 1, 'in [0, 1]')
POSITIVE_SHARE = Valid(lambda x: 0 < x <= 1, 'in (0, 1]')
OPEN_SHARE = Valid(lambda x: 0 < x < 1, 'in (0, 1)')


def check_value(name: str, value: object, kind: type, valid: Valid = ANY) -> None:
  """Checks the type of a value and that it is one of those that are taken.

  Raises:
    UserError: names it, its value and what was expected.
  """
  if not _is_of_type(value, kind) or not (valid.choices or valid.fits(value)):
    raise UserError(f'{name} is {_shown(value)}; expected {expected(kind, valid)}.')
  if valid.choices and not valid.fits(value):
    raise unknown_choice(name, value, valid.choices)


def expected(kind: type, valid: Valid) -> str:
  """Returns what a value may be, in words."""
  if valid.choices:
    return f'one of {", ".join(valid.choices)}'
  return f'{_TYPES[kind]} {valid.words}'.rstrip()


def _is_of_type(value: object, kind: type) -> bool:
  if kind is tuple:
    return isinstance(value, tuple) and all(_is_of_type(x, float) for x in value)
  if isinstance(value, bool):
    return kind is bool
  if isinstance(value, int):  # Python's have no limit: their text may have one.
    return kind in (int, float) and -(2**63) <= value < 2**63
  return isinstance(value, kind)


def _shown(value: object) -> str:
  try:
    return f'{value!r:.60}'
  except ValueError:
    return 'a number of thousands of digits'


def check_at_least(minimum: int, **values: int) -> None:
  """Raises UserError, with its name, for a value that is below `minimum`."""
  for name, value in values.items():
    if value < minimum:
      raise UserError(f'{name} is {value}, expected at least {minimum}.')
