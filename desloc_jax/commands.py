"""What the commands of this package share: every mistake ends in one line and exit code 2."""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import difflib
import pathlib
import signal
import sys
from typing import Any, NamedTuple

from desloc_jax import pipes, signals
from desloc_jax.errors import UserError
from desloc_jax.paths import local_path
from desloc_jax.valid import ANY, check_value, expected, Valid

_UNKNOWN = 'unrecognized arguments: '  # How argparse says it.


def make_parser(module: str, description: str) -> argparse.ArgumentParser:
  """Returns a parser for `python -m module`, which raises UserError where others print their usage."""
  parser = argparse.ArgumentParser(
    prog=f'python -m {module}',
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )

  def refuse(message: str) -> None:
    unknown = message.removeprefix(_UNKNOWN).partition('=')[0]
    near = difflib.get_close_matches(unknown, parser._option_string_actions, n=1)
    hint = f'. Did you mean {near[0]}?' if near and message.startswith(_UNKNOWN) else '.'
    raise UserError(f'{message}{hint} See --help.')

  parser.error = refuse
  return parser


class Option(NamedTuple):
  """An option `--NAME` of a command.

  Attributes:
    default: its value is of this type; of several values where it is a list, a path of this machine
      with `~` expanded where it is one, and a flag where it is False. A type: there is no default.
    help: what it is; names to choose from and the default are added.
    valid: values that it may have.
    required: whether it must be given.
  """

  default: Any
  help: str
  valid: Valid = ANY
  required: bool = False


def parse(
  module: str, description: str, argv: Sequence[str] | None, **options: Option
) -> argparse.Namespace:
  """Returns the values of a command's options by name.

  Raises:
    UserError: an option is unknown, or its value cannot be used.
  """
  parser = make_parser(module, description)
  add_options(parser, **options)
  return parser.parse_args(argv)


def add_options(parser: argparse.ArgumentParser, **options: Option) -> None:
  """Adds options by their names; a value that cannot be used is a UserError."""
  for name, option in options.items():
    if option.default is False:
      parser.add_argument(f'--{name}', action='store_true', help=option.help)
    else:
      _add(parser, f'--{name}', option)


def _add(parser: argparse.ArgumentParser, name: str, option: Option) -> None:
  several = isinstance(option.default, list)
  one = option.default[0] if several else option.default
  kind = one if isinstance(one, type) else type(one)
  is_path = issubclass(kind, pathlib.Path)
  default = None if one is kind else option.default
  shown = ' '.join(map(str, default)) if several else default
  notes = [expected(kind, option.valid)] if option.valid.choices and not several else []
  notes += [] if shown in (None, '') else [f'default: {shown}']

  class Checked(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
      for value in values if several else [values]:
        check_value(name, value, str if is_path else kind, option.valid)
      setattr(namespace, self.dest, local_path(values, name) if is_path else values)

  parser.add_argument(
    name,
    action=Checked,
    type=str if is_path else kind,
    default=default,
    help='; '.join([option.help, *notes]).replace('%', '%%'),
    nargs='+' if several else None,
    required=option.required,
  )


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
  """Ends the process where the user's input, or a file, cannot be used, or nobody reads on.

  By SIGINT, SIGTERM and SIGHUP too, in a line and with the exit code that a shell gives.
  """
  pipes.open_streams()
  try:
    try:
      with signals.raised(_tell_of):
        yield
    finally:
      sys.stdout.flush()  # Here, and not when the interpreter ends.
  except UserError as error:
    message = str(error)
  except BrokenPipeError:
    pipes.discard(sys.stdout)
    sys.exit(pipes.READER_GONE)
  except KeyboardInterrupt as stop:
    number = getattr(stop, 'number', signal.SIGINT)
    _tell_of(number)
    sys.exit(128 + number)
  except OSError as error:  # A disk that is full, a folder that is gone.
    message = (
      f'{error.filename or "a file or the output"} cannot be used: {error.strerror or error}'
    )
  else:
    return
  pipes.tell(' '.join(['error:', *message.split()]))
  sys.exit(2)


def _tell_of(number: int) -> None:
  pipes.tell(
    'interrupted' if number == signal.SIGINT else f'ended by {signal.Signals(number).name}'
  )
