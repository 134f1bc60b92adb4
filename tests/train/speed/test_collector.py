"""Python's garbage collector rests until the first step, and is on again whatever happens."""

import gc

import pytest

from desloc_jax.errors import UserError
from desloc_jax.train import loop
from desloc_jax.train.speed.collector import resting
from tests.runs import small_config, train_on_two


def test_it_rests_until_it_is_woken_or_the_block_ends():
  with resting() as wake:
    assert not gc.isenabled()
    wake()
    assert gc.isenabled() and gc.get_freeze_count()
  assert gc.isenabled() and not gc.get_freeze_count()
  with pytest.raises(KeyError), resting():
    raise KeyError
  assert gc.isenabled()


def test_one_that_was_off_stays_off():
  gc.disable()
  try:
    with resting() as wake:
      wake()
    assert not gc.isenabled()
  finally:
    gc.enable()


def test_a_run_has_it_on_from_its_first_step_and_after_a_start_that_fails(
  text, tmp_path, monkeypatch
):
  seen = []
  begin = loop.begin_or_go_on
  monkeypatch.setattr(
    loop, 'begin_or_go_on', lambda *args: seen.append(gc.isenabled()) or begin(*args)
  )
  add = loop.Recorder.add
  monkeypatch.setattr(loop.Recorder, 'add', lambda *args: seen.append(gc.isenabled()) or add(*args))
  train_on_two(small_config(text, stop_at=2), tmp_path / 'run')
  assert seen == [False, True, True] and gc.isenabled()
  with pytest.raises(UserError):
    train_on_two(small_config(tmp_path / 'nowhere'), tmp_path / 'other')
  assert seen[3:] == [False] and gc.isenabled()
