"""Folders that a run must not touch, and processes that are told or made to stop."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl import logging
import jax
import pytest

from configs import tiny
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import MetricsWriter, read_metrics
from desloc_jax.logs.workdir import check_workdir, POSITION_FILE
from desloc_jax.train import loop
from desloc_jax.train.setup.open_data import check_apart
from experiments.scales import changed
from tests.environment import environment
from tests.runs import losses, small_config

ROOT = pathlib.Path(__file__).parents[2]
ONE_DEVICE = environment()


def test_files_that_are_not_of_a_run_are_not_touched(tmp_path):
  notes = tmp_path / 'metrics.jsonl'
  notes.write_text('my precious notes\nline 2\n')
  with pytest.raises(UserError, match='holds metrics.jsonl but no config.json'):
    check_workdir(tmp_path)
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match='metrics.jsonl, line 1, is not of a run'):
    MetricsWriter(tmp_path, 0)
  assert notes.read_text() == 'my precious notes\nline 2\n'


@pytest.mark.parametrize(
  'content', [b'3\n{"step": 1}\n', b'{"a": 1}\n', b'\xff\xfe\x00\n', b'{"step"']
)
def test_metrics_that_no_run_wrote_are_named(tmp_path, content):
  (tmp_path / 'metrics.jsonl').write_bytes(content)
  with pytest.raises(UserError, match='line 1'):
    read_metrics(tmp_path)


def test_a_run_killed_as_it_began_can_begin_again(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  check_workdir(tmp_path)
  (tmp_path / 'checkpoints' / '5').mkdir()
  with pytest.raises(UserError, match='holds checkpoints but no config.json'):
    check_workdir(tmp_path)


@pytest.mark.parametrize('config', [None, '{"workers": 4, "ba'], ids=['lost', 'cut off'])
def test_a_run_whose_config_is_lost_is_one_by_its_checkpoints(tmp_path, config, monkeypatch):
  told = []
  monkeypatch.setattr(logging, 'warning', lambda text, *values: told.append(text % values))
  position = tmp_path / 'checkpoints' / '5' / POSITION_FILE
  position.parent.mkdir(parents=True)
  position.touch()
  if config:
    (tmp_path / 'config.json').write_text(config)
  check_workdir(tmp_path)
  assert told == [f'{tmp_path}/config.json is lost or cut off; the checkpoints have what is in it.']
  (tmp_path / 'config.json').write_text('{"mine": 3}')
  with pytest.raises(UserError, match='is not the config of a run'):
    check_workdir(tmp_path)


def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2, "lo')
  assert read_metrics(tmp_path) == [{'step': 1}]


def test_a_workdir_that_cannot_be_one_is_refused(tmp_path):
  file = tmp_path / 'file'
  file.write_text('')
  with pytest.raises(UserError, match='--workdir=/ is the root of all folders'):
    check_workdir(pathlib.Path('/'))
  for path in (file, file / 'below'):
    with pytest.raises(UserError, match='not a folder that can be written to'):
      check_workdir(path)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'checkpoints').write_text('')
  with pytest.raises(UserError, match='checkpoints is not a folder'):
    check_workdir(tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').mkdir()
  with pytest.raises(UserError, match='config.json is not a file'):
    check_workdir(tmp_path / 'run')


def test_a_disk_that_cannot_rename_a_folder_is_refused(text, tmp_path, monkeypatch):
  """As gcsfuse, which says that there are too many open files."""

  def rename(path, target):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

  monkeypatch.setattr(pathlib.Path, 'rename', rename)
  monkeypatch.setattr(loop, 'begin_or_go_on', lambda *_: pytest.fail('it began'))
  with pytest.raises(UserError, match='renamed .Too many open files.*--rename-dir-limit=200000'):
    loop.train(small_config(text), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_run_does_not_read_what_it_writes(text, tmp_path):
  for place in (text, f'{text}:all', text / '**' / '*.txt'):
    with pytest.raises(UserError, match=f'--workdir={text}/a/run is in {text}, whose files data'):
      loop.train(small_config(place), text / 'a' / 'run')
  check_apart(small_config(text / '*.txt'), text / 'run')
  (tmp_path / 'manifest.json').touch()  # Of `prepare`: says which files there are.
  check_apart(small_config(tmp_path), tmp_path / 'run')


OPTIONS = {
  'workers': 2, 'batch_size': 2, 'seq_len': 32, 'steps': 4000, 'model.layers': 1,
  'model.width': 32, 'model.heads': 2, 'periods.params': 3, 'log_every': 20,
  'eval.sequences': 8, 'eval.every': 0, 'checkpoint.every': 0, 'schedule.warmup_steps': 2,
  'health.check': False,
}  # fmt: skip


def start(text, workdir):
  options = OPTIONS | {'data.sources.text.path': text}
  flags = [f'--config.{name}={value}' for name, value in options.items()]
  return subprocess.Popen(
    [sys.executable, 'run.py', '--config=configs/tiny.py', f'--workdir={workdir}', *flags],
    cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_DEVICE,
  )  # fmt: skip


def go_on(text, workdir, stop_at):
  """Has this process go on with what another one began."""
  options = OPTIONS | {'data.sources.text.path': str(text), 'stop_at': stop_at}
  loop.train(changed(tiny.get_config(), options), workdir, jax.devices()[:1])


def wait_for_steps(workdir, count, process):
  deadline = time.monotonic() + 90
  while time.monotonic() < deadline and process.poll() is None:
    if (workdir / 'metrics.jsonl').exists() and len(losses(workdir)) >= count:
      return
    time.sleep(0.05)
  raise AssertionError(process.communicate())


@pytest.mark.parametrize(
  'command',
  [
    'run.py --config=configs/tiny.py',
    '-m desloc_jax train --config=configs/tiny.py',
    '-m desloc_jax sample --workdir=runs/tiny',
    '-m experiments.all',
    '-m experiments.systems.alarms',
  ],
)
def test_ctrl_c_while_libraries_are_imported_ends_without_a_page(command):
  """Libraries' C++ may end in a page of its own then, crash, or go on as if nothing had been."""
  process = subprocess.Popen(
    [sys.executable, '-X', 'importtime', *command.split()],
    cwd=ROOT, stderr=subprocess.PIPE, text=True, env=ONE_DEVICE,
  )  # fmt: skip
  next(line for line in process.stderr if 'numpy' in line)
  process.send_signal(signal.SIGINT)
  errors = process.stderr.read()
  assert process.wait(60) == -signal.SIGINT
  assert 'Traceback' not in errors


@pytest.mark.slow
@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_a_run_after_a_checkpoint(text, tmp_path, number, code, capsys):
  workdir = tmp_path / 'run'
  process = start(text, workdir)
  wait_for_steps(workdir, 2, process)
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == code, errors
  assert f'{number.name}: the run saves the step that it is making' in errors
  assert errors.strip().splitlines()[-1].startswith(f'stopped by {number.name} after step ')
  assert 'Traceback' not in errors
  last = read_metrics(workdir)[-1]['step']
  go_on(text, workdir, last + 5)
  assert f'Going on after step {last}.' in capsys.readouterr().out
  assert json.loads((workdir / 'summary.json').read_text())['steps'] == last + 5


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_over(text, tmp_path):
  workdir = tmp_path / 'run'
  process = start(text, workdir)
  wait_for_steps(workdir, 2, process)
  process.kill()
  process.communicate()
  go_on(text, workdir, 40)
  assert [line['step'] for line in read_metrics(workdir)] == [0, 20, 40]
