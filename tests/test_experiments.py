"""The experiments' own code, on runs of seconds."""

import csv
import os
import pathlib
import subprocess
import sys

from absl import flags
import pytest

from desloc_jax.train.config import flatten
from experiments import methods
from tests.runs import small_config

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_methods_differ_in_nothing_but_their_own_options(text, tmp_path, capsys, monkeypatch):
  flags.FLAGS(['methods', f'--runs={tmp_path}/runs', f'--results={tmp_path}/results', '--seeds=1'])
  config = small_config(text, steps=4)
  before = flatten(config)
  trained = []
  train = methods.train
  monkeypatch.setattr(methods, 'train', lambda c, w: trained.append(flatten(c)) or train(c, w))
  variants = {name: methods.VARIANTS[name] for name in ('local_sgd', 'desloc', 'ddp')}
  monkeypatch.setattr(methods, 'VARIANTS', variants)
  monkeypatch.setattr(methods, '_CONFIG', type('Flag', (), {'value': config}))
  methods.main([])
  assert flatten(config) == before
  for variant, made in zip(variants, trained, strict=True):
    changed = {name for name in made if made[name] != before[name]}
    assert changed <= {'method', *variants[variant]}
  rows = list(csv.DictReader((tmp_path / 'results' / 'methods.csv').open()))
  assert [row['variant'] for row in rows] == list(variants)
  assert len({row['val_loss'] for row in rows}) == 3
  methods.main([])  # Nothing is trained again.
  assert len(trained) == 3
  assert (tmp_path / 'results' / 'methods.png').exists()


@pytest.mark.slow
def test_the_benchmark_compares_all_programs():
  small = ('model.layers=1', 'model.width=32', 'model.heads=2', 'seq_len=32', 'batch_size=2')
  result = subprocess.run(
    [sys.executable, '-m', 'experiments.benchmark', '--config=configs/tiny.py', '--rounds=3']
    + [f'--config.{option}' for option in small],
    capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'XLA_FLAGS': ''},
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  names = [line.split('  ')[0] for line in result.stdout.splitlines()[2:6]]
  assert names == ['plain', 'desloc, local step', 'desloc, all three sync', 'ddp']
