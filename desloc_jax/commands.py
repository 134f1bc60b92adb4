"""What the commands of this package share: every mistake ends in one line and exit code 2."""

import argparse
from collections.abc import Iterator
import contextlib
import sys

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
