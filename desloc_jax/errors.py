"""The one error that a user's own input can cause."""

from collections.abc import Iterable
import difflib


class UserError(ValueError):
  """Input that cannot be used: says which value, what was expected and the nearest valid choice.

  `run.py` and the other commands print it as one line and exit with code 2, before any compute is
  spent.
  """


def unknown_choice(
  what: str, value: object, choices: Iterable[str], listed_by: str = ''
) -> UserError:
  """Returns the error for a `value` of `what` that is none of `choices`, naming the nearest ones.

  All of them are named where they are few, or nothing lists them.
  """
  choices = sorted(map(str, choices))
  near = difflib.get_close_matches(str(value), choices, n=3 if listed_by else 1)
  hint = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
  valid = f'{listed_by} lists all {len(choices)}' if listed_by else f'Valid: {", ".join(choices)}'
  return UserError(f'{what} {value!r} is unknown.{hint} {valid}.')
