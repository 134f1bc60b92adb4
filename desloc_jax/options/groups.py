"""Arrays that are averaged at periods of their own, as an option writes them."""

import re

from desloc_jax.errors import UserError
from desloc_jax.valid import LIMIT

_GROUP = re.compile(r'([A-Za-z]\w{0,30})=(.+):(\d{1,9})')


def parse_groups(text: str) -> dict[str, tuple[str, int]]:
  """Returns by name the regular expression of a group's paths, and the period of its parameters.

  Raises:
    UserError: a part has another form, or a name comes twice.
  """
  groups: dict[str, tuple[str, int]] = {}
  for part in filter(None, map(str.strip, text.split(','))):
    match = _GROUP.fullmatch(part)
    if match is None or not 0 < int(match[3]) < LIMIT:
      raise UserError(
        f"periods.groups has {part!r:.60}; expected NAME=PATHS:STEPS, as in 'rare=embedding:64, "
        "often=norm:4', PATHS a regular expression without commas."
      )
    if match[1] in groups:
      raise UserError(f'periods.groups has {match[1]} twice; each group needs a name of its own.')
    try:
      re.compile(match[2])
    except re.error as error:
      raise UserError(
        f'periods.groups has {match[2]!r:.60}, no regular expression: {error}.'
      ) from error
    groups[match[1]] = (match[2], int(match[3]))
  return groups
