"""Syncs in a run: options, bytes, and what a restart makes of their memory."""

import math

import jax
import numpy as np
import pytest

from desloc_jax.checkpoints.leaves import named_leaves
from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.options.checks import check_config
from desloc_jax.programs.hlo import read_collectives
from desloc_jax.train.job import make_job
from desloc_jax.train.resume.restore import begin_or_go_on
from tests.runs import losses, small_config, train_on_two as train

OPTIONS = {
  'sync.params': 'int4', 'sync.mu': 'ef21', 'sync.nu': 'int8', 'sync.exempt': 'embedding',
  'sync.block': 64, 'sync.delay': 2, 'periods.mu': 3, 'periods.nu': 6, 'model.layers': 1,
}  # fmt: skip
MEMORY = 'optimizer.memory.', 'optimizer.flight.'


def test_a_run_with_memories_and_syncs_in_flight_resumes_and_goes_on_with_other_workers(
  text, tmp_path
):
  """Resumes bit for bit one step after everything was sent, and one before it lands."""
  through = train(small_config(text, **OPTIONS), tmp_path / 'through')
  train(small_config(text, stop_at=7, **OPTIONS), tmp_path / 'halves')

  def restored(workers):
    checkpoints = Checkpoints(tmp_path / 'halves' / 'checkpoints', 2)
    config = small_config(text, workers=workers, steps=20, **OPTIONS)
    config.restore.allow = 'schedule'
    try:
      _, state, _, _ = begin_or_go_on(config, jax.devices()[:2], checkpoints)
    finally:
      checkpoints.close()
    return {n: np.asarray(x) for n, x in named_leaves(state).items() if n.startswith(MEMORY)}

  before, after = restored(4), restored(2)
  assert before.keys() == after.keys() and any('own.params' in name for name in before)
  for name, value in after.items():
    if (
      '.own.' in name or '.sent.' in name
    ):  # Nothing is lost: the mean over workers is what it was.
      mean = before[name].mean(axis=0)
      np.testing.assert_allclose(value, np.broadcast_to(mean, value.shape), rtol=1e-5, atol=1e-8)
    else:
      np.testing.assert_array_equal(value, before[name])
  assert any(np.abs(x).max() > 0 for x in before.values())
  assert [int(before[f'optimizer.flight.left.{name}']) for name in ('params', 'mu', 'nu')] == [
    1
  ] * 3
  resumed = train(small_config(text, **OPTIONS), tmp_path / 'halves')
  assert losses(tmp_path / 'halves') == losses(tmp_path / 'through')
  assert through['bytes_per_worker'] == resumed['bytes_per_worker']
  lines = [line for line in read_metrics(tmp_path / 'halves') if 'loss' in line]
  sent, landed = (
    [line['step'] for line in lines if 'params' in line[e]] for e in ('synced', 'landed')
  )
  assert sent == [3, 6, 9, 12] and landed == [5, 8, 11, 12]  # Nothing is in flight at the end.


def as_all_reduce(ledger, name):
  """Bytes of the array whose ring all-reduce over 4 workers sends as much."""
  return pytest.approx(ledger.ring_bytes(ledger.bytes_per_sync[name], name) / 1.5)


def test_the_ledger_of_a_run_knows_the_bytes(text):
  job = make_job(small_config(text, **{'sync.params': 'int8', 'sync.moments': 'int4'}))
  sent = {name: as_all_reduce(job.ledger, name) for name in job.ledger.bytes_per_sync}
  blocks = math.ceil(job.program.parameters / 256)
  # On each of a worker's two devices as many for each of the four workers.
  blocks = 2 * 4 * math.ceil(math.ceil(blocks / 2) / 4)
  # A scale in float32 with each block; of logarithms a least and a step.
  # With a health check each worker gets the weights of all, four bytes each.
  assert sent['params'] == blocks * (256 + 4) + 8
  assert sent['mu'] == blocks * (128 + 4) + 8
  assert sent['nu'] == blocks * (128 + 8) + 8


def test_the_ledger_of_workers_that_share_a_device_is_that_of_separate_ones(text):
  options = {'sync.params': 'int8', 'sync.nu': 'bf16'}
  job = make_job(small_config(text, **options), jax.devices()[:2])
  plain = make_job(small_config(text), jax.devices()[:1]).ledger.bytes_per_sync
  sent = {name: as_all_reduce(job.ledger, name) for name in job.ledger.bytes_per_sync}
  assert plain['params'] == sent['mu'] == 4 * job.program.parameters
  assert sent['params'] == 4 * math.ceil(job.program.parameters / 256 / 4) * (256 + 4) + 8


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'sync.params': 'int3'}, 'sync.params'),
    ({'sync.mu': 'int9'}, 'sync.mu'),
    ({'sync.nu': 'topk'}, 'topk could make nu negative; for it there are mean, gossip, bf16'),
    ({'sync.trace': 'int8'}, "sync.trace is 'int8', but method 'desloc'"),
    ({'sync.params': 'int8', 'method': 'ddp'}, "sync.params is 'int8', but method 'ddp'"),
    ({'sync.mu': 'int8', 'method': 'diloco'}, "sync.mu is 'int8', but method 'diloco'"),
    ({'sync.params': 'int8', 'sync.keep': 3}, 'nothing is averaged by what takes it: topk'),
    ({'sync.exempt': 'embedding'}, 'nothing is averaged by what takes it: bf16'),
    ({'sync.params': 'topk', 'sync.chunk': 32}, 'cannot keep 64 of 32'),
    ({'sync.params': 'int8', 'sync.exempt': 'nowhere'}, "exempt paths 'nowhere' match none of"),
    ({'sync.params': 'int8', 'sync.exempt': '('}, 'sync.exempt is .*no regular expression'),
    (
      {'sync.delay': 3},
      'sync.delay: params cannot land 3 steps after it was sent: the next one is',
    ),
    ({'sync.delay': 1, 'stochastic': True}, 'by coins the next one may be sent before'),
    ({'sync.delay': 1, 'workers': 1, 'batch_size': 8}, 'one worker alone waits for nobody'),
    ({'sync.params': 'krum'}, 'krum needs to know how many workers may lie: set sync.byzantine'),
    ({'sync.moments': 'median', 'sync.neighbours': True}, 'sync.moments is .*neighbours need to'),
    ({'sync.params': 'krum', 'sync.byzantine': 2}, 'expected byzantine from 0 to 1'),
    ({'sync.byzantine': 1}, 'nothing is averaged by what takes it: trimmed_mean, median'),
    ({'sync.moments': 'edit'}, "sync.moments is 'edit': edit weighs differences"),
    ({'failures.attack': '1:flop'}, "failures.attack.*'flop'.*flip"),
    ({'failures.attack': '9:flip'}, 'expected workers from 0 to 3'),
    ({'failures.attack': '1:flip=2'}, 'flip has no strength'),
    ({'failures.attack': '0-1:flip'}, 'lets 2 of 4 workers lie; expected fewer than half, 1 at'),
    ({'failures.attack': '1:flip, 1:alie'}, 'has worker 1 twice'),
    ({'failures.attack': '1:flip', 'method': 'ddp'}, "method 'ddp' has no average"),
    (
      {'failures.attack': '1:flip', 'sync.params': 'trimmed_mean', 'sync.byzantine': 0},
      'lets 1 of 4 workers lie, and sync.byzantine is 0: sync.params bears no more',
    ),
    (
      {'sync.params': 'int8', 'sync.decay': 1.5},
      r'sync.decay is 1.5; expected a number in \[0, 1\]',
    ),
  ],
)
def test_what_cannot_work_is_refused(text, options, message):
  config = small_config(text, **options)
  with pytest.raises(UserError, match=message):
    check_config(config)
    make_job(config)


def test_the_compiled_step_sends_the_ledgers_bytes_and_only_inside_conditionals(text):
  """Each of a worker's two devices sends its own part."""
  options = {'sync.params': 'int8', 'sync.moments': 'int4', 'health.check': False}
  job = make_job(small_config(text, **options))
  worker_of_device = [0, 0, 1, 1, 2, 2, 3, 3]
  between = [c for c in read_collectives(job.train_step.as_text()) if c.crosses(worker_of_device)]
  assert between and all(c.conditional for c in between)
  assert {c.opcode for c in between} == {'all-to-all', 'all-gather'}
  assert 2 * sum(c.payload_bytes for c in between) == sum(job.ledger.bytes_per_sync.values())
  ring = job.ledger.ring_bytes_after(dict.fromkeys(job.ledger.bytes_per_sync, 1))
  assert 2 * sum(c.sent_bytes for c in between) == pytest.approx(ring)


def test_a_run_with_a_liar_goes_on_with_other_workers(text, tmp_path):
  options = {
    'sync.params': 'krum', 'sync.moments': 'trimmed_mean', 'sync.byzantine': 1,
    'sync.neighbours': True, 'failures.attack': '1:scale=1000, ',
  }  # fmt: skip
  first = train(small_config(text, **options), tmp_path / 'run')
  more = {'workers': 6, 'steps': 15, 'failures.attack': '1:scale=1000, 4:noise'}
  more |= {'restore.allow': 'schedule,sync', 'sync.byzantine': 2}
  second = train(small_config(text, **options | more), tmp_path / 'run')
  found = losses(tmp_path / 'run')
  assert len(found) == 15 and max(found) < 1.1 * found[0]
  assert second['bytes_per_worker'] > first['bytes_per_worker'] > 0
