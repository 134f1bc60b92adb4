"""Output that cannot be written, as behind `| head -1`: commands end, runs go on, no traceback."""

import contextlib
import io
import os
import subprocess
import sys

import pytest

from desloc_jax import commands, pipes
from desloc_jax.errors import UserError


@contextlib.contextmanager
def unread():
  """Has stdout and stderr be pipes whose reader is gone."""
  streams = []
  for _ in range(2):
    reader, writer = os.pipe()
    os.close(reader)
    streams.append(os.fdopen(writer, 'w'))
  with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
    yield
  for stream in streams:
    stream.close()  # It would raise, were it not discarded.


@pytest.mark.parametrize('text', ['one line', 'x' * 100_000], ids=['at the end', 'in the middle'])
def test_a_command_ends_as_by_sigpipe(text):
  with unread(), pytest.raises(SystemExit) as ended, commands.one_line_errors():
    print(text)
  assert ended.value.code == pipes.READER_GONE


def test_a_run_goes_on():
  with unread():
    before = sys.stdout, sys.stderr
    with pipes.outliving_readers():
      for stream in (sys.stdout, sys.stderr):
        print('x' * 100_000, file=stream)
        print('more', file=stream, flush=True)
        assert not stream.isatty()
      print('the end')
    assert (sys.stdout, sys.stderr) == before


def test_a_program_whose_reader_is_gone_says_nothing(tmp_path):
  line = f'{sys.executable} -m desloc_jax | true'
  ended = subprocess.run(['bash', '-c', line], capture_output=True, text=True, check=True)
  assert ended.stderr == ''


@contextlib.contextmanager
def full(name):
  """Has stdout or stderr be a file on a full disk."""
  redirect = contextlib.redirect_stdout if name == 'stdout' else contextlib.redirect_stderr
  with open('/dev/full', 'w') as stream, redirect(stream):
    yield
    pipes.discard(stream)


def test_a_command_on_a_full_disk_ends_in_one_line(capsys):
  with full('stdout'), pytest.raises(SystemExit) as ended, commands.one_line_errors():
    print('x' * 100_000)
  assert ended.value.code == 2
  assert capsys.readouterr().err.endswith('cannot be used: No space left on device\n')
  with full('stderr'), pytest.raises(SystemExit) as ended, commands.one_line_errors():
    raise UserError('not shown')
  assert ended.value.code == 2


def test_a_run_whose_output_is_on_a_full_disk_says_so_and_goes_on(capsys):
  with full('stdout'), pipes.outliving_readers():
    print('x' * 100_000, flush=True)
    print('more')
  assert capsys.readouterr().err == (
    'warning: what follows is not shown, as output cannot be written: No space left on device.\n'
  )
  with full('stderr'), pipes.outliving_readers():
    print('x' * 100_000, file=sys.stderr, flush=True)


def test_a_command_that_is_interrupted_ends_in_one_line(capsys):
  with pytest.raises(SystemExit) as ended, commands.one_line_errors():
    raise KeyboardInterrupt
  assert ended.value.code == 130
  assert capsys.readouterr().err == 'interrupted\n'


def test_text_that_a_terminal_does_not_have_is_spelled_out():
  stream = io.TextIOWrapper(io.BytesIO(), 'ascii')
  with contextlib.redirect_stdout(stream), commands.one_line_errors():
    print('\u6771')
  assert stream.buffer.getvalue() == b'\\u6771\n'


def test_closed_streams_are_no_place_for_other_files(tmp_path):
  """Else the next file that is opened has descriptor 2, and what C++ prints goes into it."""
  lines = 'from desloc_jax import pipes; pipes.open_streams(); print(open("run.py").fileno())'
  line = f"{sys.executable} -c '{lines}' 2>&- <&-; {sys.executable} -m desloc_jax plot x >&-"
  ended = subprocess.run(['bash', '-c', line], capture_output=True, text=True, check=False)
  assert int(ended.stdout) > 2
  assert ended.stderr.startswith('error: ') and ended.stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--colur=x'], 'unrecognized arguments: --colur=x. Did you mean --colour? See --help.'),
    (['--col=x'], 'unrecognized arguments: --col=x. Did you mean --colour? See --help.'),
    (['--zzz'], 'unrecognized arguments: --zzz. See --help.'),
  ],
)
def test_an_option_is_not_guessed_from_its_beginning(args, message, capsys):
  with pytest.raises(SystemExit), commands.one_line_errors():
    parser = commands.make_parser('desloc_jax test', 'A test.')
    commands.add_options(parser, colour=commands.Option('red', 'of it'))
    parser.parse_args(args)
  assert capsys.readouterr().err == f'error: {message}\n'
