"""The steps that `profile.steps` names."""

import re

from desloc_jax.errors import UserError


def parse_steps(text: str) -> tuple[int, int] | None:
  """Returns the first and the last step of '100-103' or '100'; None for ''.

  Raises:
    UserError: it has another form.
  """
  if not text:
    return None
  match = re.fullmatch(r'(\d{1,9})(?:-(\d{1,9}))?', text.strip())
  first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
  if not 1 <= first <= last:
    raise UserError(
      f"profile.steps is {text!r:.60}; expected one step or FIRST-LAST, from 1 on, as in '100-103'."
    )
  return first, last
