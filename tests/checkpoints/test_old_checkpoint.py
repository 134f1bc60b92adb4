"""Runs begun by the code of commit b141d26 go on with the losses that they had there.

Their folders were made in a checkout of that commit, by `run.py --config=configs/tiny.py`, the
options below and `--config.stop_at=5`; `losses.json` has what the same code logged in the seven
steps that were left. `health.warmup_syncs` was the default then. There was no guard of moments, and
no `health.follows` in the state.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import tiny
from desloc_jax.train import loop
from experiments.scales import changed
from tests.runs import losses

OLD = pathlib.Path(__file__).parent / 'of_b141d26'
OPTIONS = {
  'workers': 2, 'batch_size': 1, 'seq_len': 8, 'steps': 12, 'log_every': 1, 'periods.params': 2,
  'schedule.warmup_steps': 2, 'model.layers': 1, 'model.width': 4, 'model.heads': 1,
  'model.mlp_ratio': 1, 'model.vocab_size': 257, 'model.remat': 'none', 'eval.every': 0,
  'eval.sequences': 4, 'checkpoint.every': 0, 'data.sources.text.where': 'year:1790-1829',
  'data.validation_fraction': 0.3, 'health.warmup_syncs': 10,
}  # fmt: skip


def go_on(name, folder, **options):
  workdir = shutil.copytree(OLD / name / 'run', folder / 'run')
  options = OPTIONS | {'health.check': name == 'with_check'} | options
  loop.train(changed(tiny.get_config(), options), workdir, jax.devices()[:1])
  return losses(workdir)


@pytest.mark.parametrize(
  'name, told',
  [
    ('with_check', ' with changes: a checkpoint of older code; reset: health.'),
    ('without_check', '.'),
  ],
)
def test_an_old_run_goes_on(name, told, tmp_path, capsys):
  after = go_on(name, tmp_path, moment_guard=False)
  assert f'Going on after step 5{told}\n' in capsys.readouterr().out
  assert after[:5] == losses(OLD / name / 'run')
  # Another XLA may round otherwise.
  expected = json.loads((OLD / name / 'losses.json').read_text())
  np.testing.assert_allclose(after[5:], expected, rtol=1e-5)


def test_what_has_come_since_is_on_and_said(tmp_path, capsys):
  """Two steps with the same losses, until the guard of today binds."""
  name = 'without_check'
  after = go_on(name, tmp_path)
  told = 'Going on after step 5 with changes: moment_guard (was False, is True); '
  assert told in capsys.readouterr().out
  expected = json.loads((OLD / name / 'losses.json').read_text())
  np.testing.assert_allclose(after[5:7], expected[:2], rtol=1e-5)
