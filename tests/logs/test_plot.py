"""training.png: a figure that cannot be drawn does not end a run that is done."""

import json
import os
import subprocess
import sys

import pytest

from desloc_jax.logs import plot
from desloc_jax.train import summary
from experiments.several import ROOT
from tests.runs import small_config, train_on_two

LINES = [
  {'step': 0, 'tokens': 0, 'bytes_per_worker': 0, 'val_loss': 5.0, 'synced': []},
  {'step': 1, 'tokens': 9, 'bytes_per_worker': 8, 'loss': 4.0, 'tokens_per_s': 1.0, 'synced': ['mu']},
  {'step': 2, 'tokens': 18, 'bytes_per_worker': 8, 'loss': 3.0, 'tokens_per_s': 1.0, 'seconds': 7.5,
   'losses': [2.0, 4.0], 'synced': ['params'], 'drift': {'params': 0.1}},
]  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in LINES))
  return tmp_path


def draw(workdir, **variables):
  return subprocess.run(
    [sys.executable, '-m', 'desloc_jax.logs.plot', str(workdir)],
    cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False,
  )  # fmt: skip


@pytest.mark.parametrize('backend', ['module://of_a_notebook.elsewhere', 'nonsense', 'TkAgg', ''])
def test_any_backend_of_the_environment_will_do(workdir, backend):
  done = draw(workdir, MPLBACKEND=backend)
  assert done.returncode == 0, done.stderr
  assert (workdir / 'training.png').read_bytes().startswith(b'\x89PNG')


def test_seconds_go_on_over_restarts_and_compiling():
  lines = [
    {'seconds': 9.0},
    {'val_loss': 1.0},
    {'seconds': 12.0},
    {'seconds': 5.0},
    {'seconds': 6.0},
  ]
  assert [x['seconds'] for x in plot._with_all_seconds(lines)] == [9, 12, 17, 18]


@pytest.fixture
def undrawn():
  """Figures are drawn here."""


def test_a_broken_matplotlib_is_told_in_one_line(workdir):
  (workdir / 'matplotlib.py').write_text('raise ImportError("no libfreetype\\n1\\n2")')
  done = draw(workdir, PYTHONPATH=str(workdir))
  assert (done.returncode, done.stderr) == (2, 'error: no libfreetype\n')


def test_a_run_ends_well_without_its_figure(text, tmp_path, monkeypatch, capsys):
  told = []
  monkeypatch.setattr(plot.logging, 'warning', lambda form, *values: told.append(form % values))
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  ended = train_on_two(small_config(text, stop_at=3), tmp_path / 'run')
  assert ended['steps'] == 3 and (tmp_path / 'run' / 'summary.json').exists()
  assert 'step 3: validation loss' in capsys.readouterr().out
  told = [line for line in told if line.startswith('training.png was not drawn: ')]
  assert len(told) == 1 and f'plot {tmp_path / "run"} draws it' in told[0]


def test_the_result_is_printed_before_the_figure_is_drawn(text, tmp_path, monkeypatch, capsys):
  def never_ends(*_, **options):
    raise SystemExit(9)

  monkeypatch.setattr(summary, 'plot_or_tell', never_ends)
  with pytest.raises(SystemExit):
    train_on_two(small_config(text, stop_at=3), tmp_path / 'run')
  assert 'step 3: validation loss' in capsys.readouterr().out
