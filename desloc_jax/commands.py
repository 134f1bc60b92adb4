"""What the commands of this package share: every mistake ends in one line and exit code 2."""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import math
import pathlib
import sys
from typing import Any, NamedTuple

from desloc_jax.errors import UserError
from desloc_jax.paths import local_path


def make_parser(module: str, description: str) -> argparse.ArgumentParser:
  """Returns a parser for `python -m module`, which raises UserError where others print their usage."""
  parser = argparse.ArgumentParser(
    prog=f'python -m {module}',
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )

  def refuse(message: str) -> None:
    raise UserError(f'{message}. See --help.')

  parser.error = refuse
  return parser


class LocalPath(argparse.Action):
  """Stores a file or folder of this machine, `~` expanded; an address is a UserError."""

  def __call__(self, parser, namespace, values, option_string=None):
    setattr(namespace, self.dest, local_path(values, option_string))


class Option(NamedTuple):
  """An option `--NAME` of a command.

  Attributes:
    default: its value is of this type; of several values where it is a list, and a path of this
      machine where it is one. A type: there is no default.
    help: what it is; the default is added.
    least: smallest number.
    most: largest number.
    choices: values that it may have; empty: any.
    required: whether it must be given.
  """

  default: Any
  help: str
  least: float = -math.inf
  most: float = math.inf
  choices: Sequence[str] = ()
  required: bool = False


def add_options(parser: argparse.ArgumentParser, **options: Option) -> None:
  """Adds options by their names; a number that is out of range is a UserError."""
  for name, option in options.items():
    several = isinstance(option.default, list)
    one = option.default[0] if several else option.default
    kind = one if isinstance(one, type) else type(one)
    default = None if one is kind else option.default
    shown = ' '.join(map(str, default)) if several else default
    help_text = option.help if shown in (None, '') else f'{option.help} (default: {shown})'
    parser.add_argument(
      f'--{name}',
      default=default,
      help=help_text.replace('%', '%%'),
      nargs='+' if several else None,
      choices=option.choices or None,
      metavar=name.upper() if option.choices else None,
      required=option.required,
      **{'action': LocalPath} if issubclass(kind, pathlib.Path) else _numbers(kind, option),
    )


def _numbers(kind: type, option: Option) -> dict[str, Any]:
  least, most = option.least, option.most
  span = f'{least:g} to {most:g}' if most < math.inf else f'at least {least:g}'

  class Checked(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
      for value in values if isinstance(values, list) else [values]:
        if kind in (int, float) and (value < least or value > most):
          raise UserError(f'{option_string} is {value:g}; expected {span}.')
      setattr(namespace, self.dest, values)

  return {'type': kind, 'action': Checked}


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
  """Ends the process where the user's input, or a file, cannot be used."""
  try:
    yield
  except UserError as error:
    message = str(error)
  except OSError as error:  # A disk that is full, a folder that is gone.
    message = f'{error.filename or "a file"} cannot be used: {error.strerror or error}'
  else:
    return
  print('error:', ' '.join(message.split()), file=sys.stderr)
  sys.exit(2)
