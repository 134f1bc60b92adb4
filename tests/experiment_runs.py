"""Runs of experiments: in this process, or by their command."""

import pathlib
import subprocess
import sys

from experiments import runner
from experiments.progress import Progress
from experiments.runs import with_those_before
from experiments.scales import make_scale
from tests.environment import environment

ROOT = pathlib.Path(__file__).parent.parent

SMALL = ('model.layers=1', 'model.width=32', 'model.heads=2', 'seq_len=32', 'batch_size=2')


def run_all(runs, folder):
  return runner.run_all(runs, folder, Progress(with_those_before(runs), folder))


def command(module, *args, **options):
  return subprocess.Popen(
    [sys.executable, '-m', f'experiments.{module}', *args],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(), **options,
  )  # fmt: skip


def some_runs(**options):
  scale = make_scale('test')
  return scale.runs({'desloc': options, 'ddp': {'method': 'ddp', **options}})
