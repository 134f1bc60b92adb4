"""The commands beside run.py, and the list of checkpoints."""

import os
import subprocess
import sys

import pytest

from desloc_jax import __main__ as commands
from desloc_jax.checkpoints import list_checkpoints
from desloc_jax.errors import UserError


def test_checkpoints_are_listed_whole_or_damaged(after_seven_steps):
  rows = list_checkpoints.table(after_seven_steps).splitlines()
  assert rows[2].split()[0] == '7' and rows[2].split()[-3:] == ['desloc', '4', 'whole']
  victim = max((after_seven_steps / 'checkpoints' / '7').rglob('*'), key=lambda p: p.stat().st_size)
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 1
  victim.write_bytes(content)
  assert 'damaged: ' in list_checkpoints.table(after_seven_steps).splitlines()[2]
  assert victim.name in list_checkpoints.table(after_seven_steps)


def test_a_listing_changes_nothing(after_seven_steps):
  files = lambda: {p: p.stat().st_mtime_ns for p in after_seven_steps.rglob('*')}
  saving = after_seven_steps / 'checkpoints' / '9.orbax-checkpoint-tmp'
  saving.mkdir()
  before = files()
  list_checkpoints.table(after_seven_steps)
  assert files() == before


def test_the_workdir_is_named_in_either_way(seven_steps, capsys):
  list_checkpoints.main([str(seven_steps)])
  list_checkpoints.main([f'--workdir={seven_steps}'])
  first, second = capsys.readouterr().out.split('step', 2)[1:]
  assert first == second
  with pytest.raises(SystemExit):
    list_checkpoints.main([])
  assert 'expected the workdir of one run' in capsys.readouterr().err


def test_a_folder_without_checkpoints_is_one_line(tmp_path):
  with pytest.raises(UserError, match='has no checkpoint'):
    list_checkpoints.table(tmp_path)


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_each_command_has_help_with_an_example(name, capsys):
  with pytest.raises(SystemExit) as stop:
    commands.main([name, '--help'])
  assert stop.value.code == 0
  assert f'python -m desloc_jax {name}' in capsys.readouterr().out


def test_an_unknown_command_is_one_line(capsys):
  with pytest.raises(SystemExit) as stop:
    commands.main(['prepar'])
  assert stop.value.code == 2
  assert "Did you mean 'prepare'?" in capsys.readouterr().err


def test_the_module_is_a_command(after_seven_steps):
  command = [sys.executable, '-m', 'desloc_jax', 'checkpoints', str(after_seven_steps)]
  done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
  assert 'whole' in done.stdout
