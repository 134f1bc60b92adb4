"""Checks of numbers that a user gives."""

from desloc_jax.errors import UserError


def check_at_least(minimum: int, **values: int) -> None:
  """Raises UserError, with its name, for a value that is below `minimum`."""
  for name, value in values.items():
    if value < minimum:
      raise UserError(f'{name} is {value}, expected at least {minimum}.')
