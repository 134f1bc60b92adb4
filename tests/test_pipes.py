"""Output that nobody reads on, as behind `| head -1`, is no error: commands end, runs go on."""

import contextlib
import os
import subprocess
import sys

import pytest

from desloc_jax import commands, pipes


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
