"""Commands that are asked to end: in one line, with a shell's exit code, and nothing half done left."""

import os
import signal
import subprocess
import sys

import pytest

from desloc_jax import commands
from desloc_jax.files import atomic_folder, atomic_write


@pytest.mark.parametrize(
  ('number', 'line', 'code'),
  [
    (signal.SIGINT, 'interrupted', 130),
    (signal.SIGTERM, 'ended by SIGTERM', 143),
    (signal.SIGHUP, 'ended by SIGHUP', 129),
  ],
)
def test_what_is_half_done_is_removed(number, line, code, tmp_path, capsys, monkeypatch):
  handler = signal.signal(number, signal.SIG_DFL)
  try:
    with pytest.raises(SystemExit) as ended, commands.one_line_errors():
      with atomic_folder(tmp_path / 'folder') as folder, atomic_write(tmp_path / 'file') as file:
        (folder / 'weights').touch()
        file.write(b'half')
        signal.raise_signal(number)
    assert signal.getsignal(number) == signal.SIG_DFL
  finally:
    signal.signal(number, handler)
  assert (ended.value.code, capsys.readouterr().err) == (code, f'{line}\n')
  assert os.listdir(tmp_path) == []


_IN_C = """
import hashlib
from desloc_jax import commands
with commands.one_line_errors():
  print(flush=True)
  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)
"""
_CLEANS_UP_FOR_LONG = """
import time
from desloc_jax import commands
with commands.one_line_errors():
  try:
    print(flush=True)
    time.sleep(60)
  finally:
    print(flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(('program', 'signals'), [(_IN_C, 1), (_CLEANS_UP_FOR_LONG, 2)])
def test_none_waits_for_long(program, signals):
  """For C code that does not come back, where Python would handle a signal; or for a second one."""
  process = subprocess.Popen(
    [sys.executable, '-c', program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  for _ in range(signals):
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
  assert process.communicate(timeout=20)[1] == 'ended by SIGTERM\n'
  assert process.returncode == 143


def test_what_is_ignored_stays_so():
  """As under nohup."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with commands.one_line_errors():
      signal.raise_signal(signal.SIGHUP)
  finally:
    signal.signal(signal.SIGHUP, before)
