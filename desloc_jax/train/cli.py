"""The command line of run.py: help by group, and one clear line for whatever cannot be used."""

from collections.abc import Callable, Sequence
import functools
import sys

from absl import flags, logging

from desloc_jax.errors import UserError, unknown_choice

USAGE_ERROR = 2
DIVERGED = 3


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the command line for `absl.app.run`; ends the process on --help and on errors."""
  if {'--help', '-h', '-help', '--helpfull', '--helpshort'} & set(argv[1:]):
    _print_help(argv[0])
    sys.exit(0)
  try:
    _check_option_names(argv[1:])
    rest = flags.FLAGS(list(argv))
    if len(rest) > 1:
      raise UserError(f'{rest[1]!r} is not an option; options begin with --. See --help.')
    if flags.FLAGS['config'].value is None:
      raise UserError('--config is missing, e.g. --config=configs/tiny.py. See --help.')
    return rest
  except (flags.Error, ValueError, TypeError, KeyError, AttributeError, OSError, SyntaxError) as error:
    fail(error)


def exit_with_one_line(main: Callable) -> Callable:
  """Wraps `main` so that a user's mistake, or a diverged run, ends in one line and an exit code."""

  @functools.wraps(main)
  def wrapped(argv):
    from desloc_jax.train.recorder import TrainingDiverged  # Imports JAX.

    try:
      main(argv)
    except UserError as error:
      fail(error)
    except TrainingDiverged as error:
      fail(error, DIVERGED)

  return wrapped


def fail(error: Exception, code: int = USAGE_ERROR) -> None:
  """Prints an error as one line and exits."""
  text = ' '.join(str(error).split())
  print(f'error: {text}', file=sys.stderr)
  sys.exit(code)


def _check_option_names(args: Sequence[str]) -> None:
  from desloc_jax.train.config import OPTIONS

  for arg in args:
    name = arg.lstrip('-').partition('=')[0]
    if name.startswith('config.'):
      name = name.removeprefix('config.')
      # Sources are named by the config file.
      if name not in OPTIONS and not name.startswith('data.sources.'):
        raise unknown_choice('option --config.', name, OPTIONS)


def _print_help(program: str) -> None:
  from desloc_jax.train.config import options_help

  own = [flags.FLAGS[name] for name in ('config', 'workdir', 'mode')]
  print(sys.modules['__main__'].__doc__)
  print('flags:')
  for flag in own:
    print(f'  --{flag.name}={flag.default or ""}\n      {flag.help}')
  print(options_help())
