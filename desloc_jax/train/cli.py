"""The command line of run.py: help by group, and one clear line for whatever cannot be used."""

from collections.abc import Callable, Sequence
import difflib
import functools
import importlib
import os
import pathlib
import re
import sys
import traceback

from absl import flags
from ml_collections import config_dict, config_flags

from desloc_jax import starting
from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.hosts import ending
from desloc_jax.hosts.peers import peers
from desloc_jax.paths import local_path
from desloc_jax.pipes import outliving_readers

USAGE_ERROR = 2
DIVERGED = 3
# Beside the current folder, where configs/ may be: in an installed package, in a checkout.
_PACKAGE = pathlib.Path(__file__).parents[1]
_FOLDERS = (_PACKAGE, _PACKAGE.parent)
# What Python and the loader of libraries say where `ulimit -v` or `-u` is reached.
_LIMITED = ("can't start new thread", 'failed to map segment')
_CONFIG = re.compile(r'--?config(=|$)')


def find_config_files(args: Sequence[str]) -> list[str]:
  """Returns arguments of which `--config=configs/FILE` names a file of ours if there is none here."""
  names = [None, *args]
  found = []
  for before, arg in zip(names, args, strict=False):
    flag, equals, path = arg.rpartition('=') if arg.startswith('--config=') else ('', '', arg)
    if equals or before == '--config':
      arg = f'{flag}{equals}{_find(path)}'
    found.append(arg)
  return found


def _find(path: str) -> str:
  if path.startswith('configs/') and not os.path.exists(path.partition(':')[0]):
    for folder in _FOLDERS:
      if os.path.isfile(folder / path.partition(':')[0]):
        if folder == _PACKAGE:  # They import each other by the name that they have in a checkout.
          sys.modules.setdefault('configs', importlib.import_module('desloc_jax.configs'))
        return str(folder / path)
  return path


def check_one_config(args: Sequence[str]) -> None:
  """Checks that --config is given once at most.

  Raises:
    UserError: it is given twice, as by a script and behind it; the last one would not count alone.
  """
  pairs = zip(args, [*args[1:], ''], strict=True)
  given = [arg if '=' in arg else f'{arg} {after}' for arg, after in pairs if _CONFIG.match(arg)]
  if len(given) > 1:
    raise UserError(f'{" and ".join(given)}: expected one config file.')


def parse_flags(
  argv: Sequence[str], module: str = '__main__', usage: str | None = None
) -> list[str]:
  """Parses the command line for `absl.app.run`; ends the process on --help and on errors.

  The help is `usage`, or else the docstring of the program, then the flags that `module` defined.
  """
  if {'--help', '-h', '-help', '--helpfull', '--helpshort'} & set(argv[1:]):
    with outliving_readers():
      # Without docstrings under PYTHONOPTIMIZE=2.
      _print_help(usage or sys.modules['__main__'].__doc__ or argv[0], module)
    sys.exit(0)
  try:
    check_option_names(argv[1:])
    rest = flags.FLAGS(list(argv))
    if len(rest) > 1:
      raise UserError(f'{rest[1]!r} is not an option; options begin with --. See --help.')
    check_config_loaded()
    return rest
  except KeyError as error:  # ml_collections, of a group of options that is not there.
    key = str(error).strip('\'"')
    names = [arg.partition('=')[0] for arg in argv if f'.{key}.' in arg]
    fail(f'{names[0]}: this config has no {key!r}' if names else f'KeyError: {error}')
  except Exception as error:  # A config file is a program: it may raise anything.
    fail(error)


def exit_with_one_line(main: Callable) -> Callable:
  """Wraps `main` so that a user's mistake, or a diverged run, ends in one line and an exit code."""

  @functools.wraps(main)
  @outliving_readers()
  def wrapped(argv):
    from desloc_jax.hosts.interruption import Interrupted
    from desloc_jax.train.divergence import TrainingDiverged

    starting.ctrl_c_raises()
    ending.belong_to_run()
    sys.unraisablehook = functools.partial(_tell_of_unraisable, sys.unraisablehook)
    try:
      main(argv)
    except UserError as error:
      fail(error)
    except TrainingDiverged as error:
      fail(error, DIVERGED)
    except Interrupted as stop:
      peers().end(stop.exit_code, str(stop))
    except KeyboardInterrupt:
      fail('interrupted before the first step', 130)
    except OSError as error:  # A disk that is full, a folder that is gone.
      fail(f'{error.filename or "a file"} cannot be used: {error.strerror or error}')
    except Exception as error:
      if peers().lost_by(error):
        peers().end(
          ending.PEER_LOST, 'error: lost contact with another process, which died or hangs.'
        )
      if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
        fail(f'{_first_line(error)}. Less batch_size or more accumulation or devices may help.')
      if any(text in str(error) for text in _LIMITED):
        fail(f'{_first_line(error)}: this process may have no more memory or threads; see ulimit.')
      traceback.print_exc()
      peers().end(1, 'error: see above.')

  return wrapped


def _tell_of_unraisable(tell: Callable, unraisable: 'sys.UnraisableHookArgs') -> None:
  # After a write that failed, tensorstore tells an event loop that is gone of each other one.
  if str(unraisable.exc_value) != 'Event loop is closed':
    tell(unraisable)


def fail(error: Exception | str, code: int = USAGE_ERROR) -> None:
  """Prints an error as one line and exits."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  if any(line.startswith('Traceback') for line in lines):
    lines = lines[-1:]  # An error in the config file itself: ml_collections quotes its traceback.
  text = ' '.join(' '.join(lines).split()).removeprefix('desloc_jax.errors.UserError: ')
  peers().end(code, f'error: {text}')


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or ['there is not enough memory']
  return lines[0][:300].rstrip('.')


def check_config_loaded(values: flags.FlagValues = flags.FLAGS) -> None:
  """Checks that --config names a file that gives a config.

  Raises:
    UserError: it does not, or is missing.
  """
  # ml_collections reports a config file that it could not load when the config is first used.
  if not values['config'].present:
    raise UserError('--config is missing, e.g. --config=configs/tiny.py. See --help.')
  config = values['config'].value
  # What follows a colon is the argument of get_config.
  path = local_path(config_flags.get_config_filename(values['config']), '--config').partition(':')[
    0
  ]
  if not os.path.isfile(path):
    near = difflib.get_close_matches(path, _config_files(), n=1, cutoff=0.3)
    hint = f' Did you mean {near[0]}?' if near else ''
    raise UserError(f'the config file {path} does not exist.{hint}')
  if not isinstance(config, config_dict.ConfigDict):
    raise UserError(
      f'get_config of {path} returns {type(config).__name__}; expected a ConfigDict, from '
      'desloc_jax.options.table.default_config().'
    )


def _config_files() -> list[str]:
  folders = [pathlib.Path(), *_FOLDERS]
  return sorted({f'configs/{p.name}' for f in folders for p in (f / 'configs').glob('*.py')})


def check_option_names(args: Sequence[str]) -> None:
  """Checks the names of arguments `--config.NAME`.

  Raises:
    UserError: there is no such option; names the nearest one.
  """
  from desloc_jax.options.table import find_row, OPTIONS

  for arg in (arg for arg in args if arg.startswith('-')):
    name = arg.lstrip('-').partition('=')[0]
    if name.startswith('config.'):
      name = name.removeprefix('config.')
      if find_row(name) is None:
        raise unknown_choice('--config option', name, OPTIONS, listed_by='--help')


def _print_help(usage: str, module: str) -> None:
  from desloc_jax.options.help_text import options_help

  own = flags.FLAGS.get_flags_for_module(module)
  lines = [usage, 'flags:']
  lines += [f'  --{flag.name}={flag.default or ""}\n      {flag.help}' for flag in own]
  print('\n'.join([*lines, options_help()]))
