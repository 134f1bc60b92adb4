"""Weights & Biases: what is logged, with a stand-in for the package, and with it where it is installed."""

import sys
import types

import pytest

from desloc_jax.errors import UserError
from desloc_jax.logs import wandb_log

LINE = {'step': 3, 'loss': 1.5, 'synced': ['mu'], 'drift': {'params': 0.25}}


def test_numbers_are_logged_by_step(tmp_path, monkeypatch):
  calls = []
  run = types.SimpleNamespace(
    define_metric=lambda *names, **options: calls.append((names, options)),
    log=calls.append,
    finish=lambda: calls.append('end'),
  )
  fake = types.SimpleNamespace(
    init=lambda **options: calls.append(options) or run, Settings=lambda **options: options
  )
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  wandb_log.check_available('offline')
  log = wandb_log.WandbLog(tmp_path / 'run', 'offline', {'workers': 4})
  log.write(LINE)
  log.close()
  assert calls[0]['mode'] == 'offline' and calls[0]['config'] == {'workers': 4}
  assert calls[0]['name'] == 'run' and calls[1] == (('*',), {'step_metric': 'step'})
  assert calls[2:] == [{'step': 3, 'loss': 1.5, 'drift/params': 0.25}, 'end']


def test_what_keeps_it_from_beginning_is_one_line(tmp_path, monkeypatch):
  def init(**_):
    raise RuntimeError('no account')

  fake = types.SimpleNamespace(init=init, Settings=dict)
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  with pytest.raises(UserError, match='online cannot begin: no account'):
    wandb_log.WandbLog(tmp_path, 'online', {})
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(UserError, match='pip install wandb'):
    wandb_log.check_available('offline')
  wandb_log.check_available('off')


def test_offline_needs_no_account(tmp_path):
  pytest.importorskip('wandb')
  log = wandb_log.WandbLog(tmp_path, 'offline', {'workers': 4})
  log.write(LINE)
  log.close()
  assert list((tmp_path / 'wandb').glob('offline-run-*/*.wandb'))
