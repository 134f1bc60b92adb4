"""Processes go on from one checkpoint: the first says which, also where a disk shows others less."""

import json
import pathlib
import shutil

import jax
import pytest

from configs import tiny
from desloc_jax.checkpoints import same_view
from desloc_jax.errors import UserError
from desloc_jax.hosts import peers as peers_lib
from desloc_jax.hosts.peers import Peers
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.train import loop
from experiments.scales import changed
from experiments.several import config_arguments, start_command

OPTIONS = {
  'batch_size': 2, 'seq_len': 32, 'steps': 8, 'model.layers': 1, 'model.width': 32,
  'model.heads': 2, 'periods.params': 3, 'log_every': 1, 'eval.sequences': 8,
  'data.validation_fraction': 0.2, 'schedule.warmup_steps': 2, 'checkpoint.every': 3,
  'health.check': False,
}  # fmt: skip

# Runs run.py as a process with a stale view: VIEW is what is hidden, of process 'WHO'.
STALE = """
import os, pathlib, runpy, sys
sys.path.insert(0, os.getcwd())
view, who = sys.argv[1], sys.argv[2]
sys.argv = sys.argv[3:]
from desloc_jax.checkpoints.store import Checkpoints
Checkpoints.__init__.__defaults__ = (3,)
hidden = os.sep + 'checkpoints' + os.sep + '6'
if f'--process_id={who}' in sys.argv:
  listdir, is_dir, exists, unseen = os.listdir, pathlib.Path.is_dir, pathlib.Path.exists, lambda p: False
  os.listdir = lambda path='.': [n for n in listdir(path) if not f'{path}/{n}'.endswith(hidden)]
  if view == 'all':
    pathlib.Path.is_dir = lambda path: hidden not in str(path) and is_dir(path)
    pathlib.Path.exists = lambda path, **o: hidden not in str(path) and exists(path, **o)
runpy.run_path('run.py', run_name='__main__')
"""


@pytest.fixture(scope='module')
def at_six(text, tmp_path_factory):
  """The workdir of a run of one process that stopped after step 6, with checkpoints of 3 and 6."""
  workdir = tmp_path_factory.mktemp('runs') / 'six'
  options = OPTIONS | {'workers': 2, 'data.sources.text.path': str(text), 'stop_at': 6}
  loop.train(changed(tiny.get_config(), options), workdir, jax.devices()[:1])
  return workdir


def go_on(text, workdir, tmp_path, view, who):
  (tmp_path / 'stale.py').write_text(STALE)
  options = OPTIONS | {'data.sources.text.path': text}
  command = [tmp_path / 'stale.py', view, who, 'run.py', f'--workdir={workdir}']
  started = start_command([*command, *config_arguments('configs/tiny.py', options, 2)], 2)
  try:
    ends = [process.communicate(timeout=200) for process in started]
  finally:
    for process in started:
      process.kill()
  return [process.returncode for process in started], ends


@pytest.mark.slow
@pytest.mark.parametrize('who', ['0', '1'])
def test_a_stale_listing_hides_no_checkpoint(text, at_six, tmp_path, who):
  workdir = shutil.copytree(at_six, tmp_path / 'run')
  codes, ends = go_on(text, workdir, tmp_path, 'listing', who)
  assert codes == [0, 0], ends
  assert ['Going on after step 6.' in out for out, _ in ends] == [True, False]
  assert [line['step'] for line in read_metrics(workdir)] == list(range(9))


@pytest.mark.slow
@pytest.mark.parametrize('who', ['0', '1'])
def test_a_process_that_never_sees_it_ends_all(text, at_six, tmp_path, who):
  workdir = shutil.copytree(at_six, tmp_path / 'run')
  codes, ends = go_on(text, workdir, tmp_path, 'all', who)
  assert codes == [2, 2], ends
  for _, errors in ends:
    lines = [line for line in errors.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and 'on a disk that they share' in lines[0], errors
    assert 'Traceback' not in errors
  names = {path.name for path in (workdir / 'checkpoints').iterdir()}
  assert names == {'3', '6'} and len(read_metrics(workdir)) == 7


@pytest.mark.slow
def test_a_damaged_file_sends_all_to_the_checkpoint_before(text, at_six, tmp_path):
  """Whichever of the processes has it to verify."""
  workdir = shutil.copytree(at_six, tmp_path / 'run')
  folder = workdir / 'checkpoints' / '6'
  for name in json.loads((folder / 'checksums.json').read_text()):
    data = bytearray((folder / name).read_bytes())
    if data:
      data[len(data) // 2] ^= 4
      (folder / name).write_bytes(data)
  codes, ends = go_on(text, workdir, tmp_path, 'nothing', '-')
  assert codes == [0, 0], ends
  assert ['Going on after step 3.' in out for out, _ in ends] == [True, False]
  assert (workdir / 'checkpoints' / 'damaged-6').is_dir()


@pytest.fixture
def two(monkeypatch):
  """As process 0 of two, the other of which says what is put into the list, one value a call."""
  answers, played = [], Peers()
  monkeypatch.setattr(played, 'gather', lambda value: [value, answers.pop(0)])
  monkeypatch.setattr(peers_lib, '_peers', played)
  monkeypatch.setattr(same_view, '_PAUSE_S', 0)
  return answers


FINE = [None, 'None']


def test_the_first_looks_up_what_another_lists(two, tmp_path, monkeypatch):
  for step in (3, 6):
    (tmp_path / str(step)).mkdir()
  monkeypatch.setattr(same_view, 'listed_steps', lambda folder: [3])
  two += [FINE, [3, 6], FINE]
  assert same_view.agreed_steps(tmp_path, 10) == [6, 3] and not two
  two += [FINE, [3, 9], FINE] * 2
  with pytest.raises(
    UserError, match='process 1 sees a checkpoint of step 9 .* process 0 does not'
  ):
    same_view.agreed_steps(tmp_path, -1)
  two.clear()
  two += [FINE, [3], FINE]
  same_view.wait_until_none_is_extra(tmp_path, -1)
  two += [FINE, [2, 3], FINE]  # One that process 0 has set aside.
  with pytest.raises(UserError, match='process 1 sees a checkpoint of step 2 '):
    same_view.wait_until_none_is_extra(tmp_path, -1)


def test_the_others_need_not_list_what_the_first_sees(two, tmp_path):
  (tmp_path / '6').mkdir()
  (tmp_path / '6.orbax-checkpoint-tmp').mkdir()
  (tmp_path / 'damaged-9').mkdir()
  (tmp_path / '07').mkdir()
  two += [FINE, [], FINE]
  assert same_view.agreed_steps(tmp_path, 10) == [6]
  assert same_view.listed_steps(pathlib.Path(tmp_path, 'nothing')) == []


def test_what_the_first_does_is_told(two, monkeypatch):
  two.append([None, None, ''])
  played = peers_lib.peers()
  assert played.from_first(lambda: {'a': 1}) == {'a': 1}
  two.append([None, None, ''])

  def refuse():
    raise UserError('no')

  with pytest.raises(UserError, match='no'):
    played.from_first(refuse)
  monkeypatch.setattr(played, 'index', 1)  # Now as the other one.
  ends = [[None, 1, 'torn'], [None, None, '']]
  monkeypatch.setattr(played, 'gather', lambda value: ends)
  with pytest.raises(KeyError, match='torn'):
    played.from_first(refuse, also=(KeyError,))
