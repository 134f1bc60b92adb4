"""Workers that fail within a run of the trainer: planned, at random, and by numbers that break."""

from concurrent import futures
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.options.worker_failures import active_workers, parse_away
from desloc_jax.train import loop
from desloc_jax.train.divergence import TrainingDiverged
from tests.runs import losses, small_config


def train(config, workdir):
  return loop.train(config, workdir, jax.devices()[:2])


def poisoned(monkeypatch, workers, at, value=jnp.nan):
  """Has the trainer spoil the parameters of some workers before the step after `at`."""
  make = loop.begin_or_go_on

  def begin(*args):
    job, state, start, changes = make(*args)
    train_step = job.train_step

    def step(state, *inputs):
      if int(state.step) == at:
        spoil = lambda x: jax.device_put(x.at[jnp.array(workers)].set(value), x.sharding)
        params = jax.tree.map(spoil, state.optimizer.params)
        state = state._replace(optimizer=state.optimizer._replace(params=params))
      return train_step(state, *inputs)

    compiling = futures.Future()
    compiling.set_result((step, 0.0))
    return dataclasses.replace(job, compiling=compiling), state, start, changes

  monkeypatch.setattr(loop, 'begin_or_go_on', begin)


def test_a_broken_worker_is_restarted_and_told_of(text, tmp_path, monkeypatch, capfd):
  poisoned(monkeypatch, [2], at=4)
  summary = train(small_config(text), tmp_path)
  lines = read_metrics(tmp_path)
  assert np.isfinite([line['loss'] for line in lines if 'loss' in line]).all()
  restarts = {line['step']: line['restarts'] for line in lines if 'restarts' in line}
  assert restarts == {step: [0, 0, 1, 0] for step in range(6, 13)}  # Seen at the sync of step 6.
  assert lines[-1]['val_loss'] < lines[0]['val_loss'] - 0.5
  assert 'Step 6: worker 2 was not finite, had run away or was stuck.' in capfd.readouterr().err
  assert summary['syncs']['restarts'] == 1
  assert [line['synced'] for line in lines if 'restarts' in line.get('synced', [])] == [
    ['params', 'restarts']
  ]


def test_a_run_without_a_healthy_worker_stops_before_it_saves(text, tmp_path, monkeypatch):
  poisoned(monkeypatch, [0, 1, 2, 3], at=5)
  config = small_config(text, **{'checkpoint.every': 4, 'log_every': 100})
  with pytest.raises(
    TrainingDiverged, match='no healthy worker is left: loss of worker 0, 1, 2, 3'
  ):
    train(config, tmp_path)
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['4']


def test_without_the_check_a_broken_worker_stops_the_run(text, tmp_path, monkeypatch):
  poisoned(monkeypatch, [2], at=4)
  with pytest.raises(TrainingDiverged, match='loss of worker 2 is nan at step 5'):
    train(small_config(text, **{'health.check': False}), tmp_path)


def test_workers_leave_and_return_by_a_plan(text, tmp_path):
  options = {'failures.away': '3:2-5, 0-1:8-10'}
  train(small_config(text, **options), tmp_path / 'run')
  lines = [line for line in read_metrics(tmp_path / 'run') if 'loss' in line]
  away = {line['step']: line['away'] for line in lines}
  assert away == {
    step: [3] if 2 <= step <= 5 else [0, 1] if 8 <= step <= 10 else [] for step in range(1, 13)
  }
  assert lines[-1]['val_loss'] < lines[0]['loss'] - 0.5
  # The same again, resumed in the middle of an absence.
  train(small_config(text, **options, stop_at=4), tmp_path / 'resumed')
  train(small_config(text, **options), tmp_path / 'resumed')
  assert losses(tmp_path / 'resumed') == losses(tmp_path / 'run')
  # And it does make a difference.
  train(small_config(text), tmp_path / 'all')
  assert losses(tmp_path / 'all')[:1] == losses(tmp_path / 'run')[:1]
  assert losses(tmp_path / 'all')[-1] != losses(tmp_path / 'run')[-1]


def test_workers_can_come_in_later(text, tmp_path):
  """The paper's doubling of workers in mid-run, within one run."""
  train(small_config(text, **{'failures.away': '2-3:1-6'}), tmp_path)
  lines = [line for line in read_metrics(tmp_path) if 'loss' in line]
  assert [line['away'] for line in lines] == [[2, 3]] * 6 + [[]] * 6
  assert lines[-1]['loss'] < lines[5]['loss']


def test_random_failures_have_the_rate_and_length_that_is_asked_for(text):
  config = small_config(text, **{'failures.rate': 0.02, 'failures.steps': 50, 'workers': 64})
  active = active_workers(config)
  table = np.array([active(step) for step in range(1, 2001)])
  assert table[:, 0].mean() != table[:, 1].mean()
  # Away for a share of 0.02 * 50 / (1 + 0.02 * 50) in the long run.
  assert table[500:].mean() == pytest.approx(0.5, abs=0.03)
  departures = (table[:-1] & ~table[1:]).sum()
  assert departures / table[:-1].sum() == pytest.approx(0.02, rel=0.1)
  again = active_workers(config)
  assert (again(700) == table[699]).all()  # At once, as after a resume.
  few = active_workers(small_config(text, **{'failures.rate': 0.02, 'failures.steps': 50}))
  assert (few(700) == table[699, :4]).all()  # A worker's fate is its own.


@pytest.mark.parametrize(
  ('plan', 'message'),
  [
    ('3', "has '3'; expected WORKER:FIRST-LAST"),
    ('1:5', 'expected WORKER:FIRST-LAST'),
    ('1:5-4', 'the last not before the first'),
    ('1:0-4', 'steps from 1 on'),
    ('2-1:1-4', 'workers from 0 to 3'),
    ('0-3:5-6', 'no worker is left in step 5'),
    ('0-1:2-9, 2-3:9-12', 'no worker is left in step 9'),
  ],
)
def test_plans_that_cannot_be_are_refused(plan, message, text):
  with pytest.raises(UserError, match=message):
    active_workers(small_config(text, **{'failures.away': plan}))


def test_a_plan_is_read():
  assert parse_away('3:100-199, 0-1:500-', 4) == [(3, 3, 100, 199), (0, 1, 500, float('inf'))]
  assert parse_away('', 4) == []
