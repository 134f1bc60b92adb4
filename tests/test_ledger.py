"""The ledger: bytes from jaxprs, and refusal of what crosses outside a conditional."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
import optax
import pytest

from desloc_jax import desloc
from desloc_jax.optimizer.ddp import ddp
from desloc_jax.optimizer.ledger import read_ledger, transform_ledger, UnconditionalExchangeError
from desloc_jax.train.job import make_job
from tests.runs import small_config

PARAMS = {
  'w': jax.ShapeDtypeStruct((300, 70), jnp.float32),
  'b': jax.ShapeDtypeStruct((), jnp.float32),
}
SIZE = 4 * (300 * 70 + 1)
PAPER = {'params': 256, 'mu': 768, 'nu': 1536}
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def test_the_ratios_of_the_paper_come_out_of_the_jaxprs():
  equal = dict.fromkeys(PAPER, 256)
  mine = transform_ledger(desloc(ADAM, PAPER), PARAMS, PAPER, 4)
  local_adam = transform_ledger(desloc(ADAM, equal), PARAMS, equal, 4)
  data_parallel = transform_ledger(ddp(ADAM), PARAMS, {}, 4)
  assert mine.bytes_per_sync == dict.fromkeys(PAPER, SIZE)
  assert data_parallel.bytes_per_sync == {'gradients': SIZE}
  assert data_parallel.bytes_per_step / mine.bytes_per_step == pytest.approx(170.6667, abs=1e-3)
  assert local_adam.bytes_per_step / mine.bytes_per_step == pytest.approx(2.0, abs=1e-12)


def test_the_ledger_of_a_whole_training_step(text):
  """The real model, loss and optimizer, 4 workers on 8 devices."""
  config = small_config(text, **{'periods.params': 256, 'steps': 4000})
  job = make_job(config)
  size = 4 * job.parameters
  health = {'health': 80, 'restarts': 2 * size + 8}  # With the counts of Adam and the schedule.
  assert job.ledger.bytes_per_sync == dict.fromkeys(PAPER, size) | health
  assert job.ledger.periods == PAPER | {'health': 256, 'restarts': math.inf}
  tolerance = 2 * 80 / size
  sent = job.ledger.bytes_per_step
  assert job.ddp_ledger.bytes_per_step / sent == pytest.approx(512 / 3, rel=tolerance)
  assert job.local_adam_ledger.bytes_per_step / sent == pytest.approx(2.0, rel=tolerance)


def test_bytes_over_a_run():
  ledger = transform_ledger(desloc(ADAM, PAPER), PARAMS, PAPER, 4)
  assert ledger.syncs_in(1000) == {'params': 3, 'mu': 1, 'nu': 0}
  assert ledger.bytes_after(ledger.syncs_in(1000)) == 4 * SIZE
  assert ledger.ring_bytes(4 * SIZE) == 6 * SIZE  # 2 (4 - 1) / 4 of it.


def test_states_that_stay_local_are_not_in_the_ledger():
  periods = {'params': 8, 'mu': None, 'nu': 16}
  ledger = transform_ledger(desloc(ADAM, periods), PARAMS, periods, 2)
  assert ledger.bytes_per_sync == {'params': SIZE, 'nu': SIZE}


def test_moments_in_half_precision_count_half():
  periods = {'params': 8, 'mu': 8, 'nu': 8}
  ledger = transform_ledger(
    desloc(optax.adam(1.0, mu_dtype=jnp.bfloat16), periods), PARAMS, periods, 2
  )
  assert ledger.bytes_per_sync == {'params': SIZE, 'mu': SIZE // 2, 'nu': SIZE}


def trace(function):
  mesh = jax.make_mesh((4,), ('workers',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
  mapped = jax.shard_map(
    function, mesh=mesh, in_specs=P('workers'), out_specs=P('workers'), check_vma=False
  )
  return jax.make_jaxpr(mapped)(jnp.ones(8))


LEAKS = {
  'pmean': lambda x: x - jax.lax.pmean(x, 'workers'),
  'all_gather': lambda x: jax.lax.all_gather(x, 'workers').sum(0),
  'ppermute': lambda x: jax.lax.ppermute(x, 'workers', [(0, 1), (1, 2), (2, 3), (3, 0)]),
  'under jit': jax.jit(lambda x: jax.lax.pmax(x, 'workers')),
  'in a scan': lambda x: jax.lax.scan(lambda c, _: (jax.lax.psum(c, 'workers'), None), x, None, 3)[
    0
  ],
  'in a while loop': lambda x: jax.lax.while_loop(
    lambda c: c.sum() < 9, lambda c: jax.lax.psum(c, 'workers'), x
  ),
  'in a conditional that is no sync': lambda x: jax.lax.cond(
    x[0] > 0, lambda y: jax.lax.psum(y, 'workers'), lambda y: y, x
  ),
}


@pytest.mark.parametrize('leak', LEAKS)
def test_an_exchange_outside_the_syncs_is_an_error(leak):
  with pytest.raises(UnconditionalExchangeError, match="over 'workers'"):
    read_ledger(trace(LEAKS[leak]), {'params': 1}, 4)


def test_a_leak_beside_the_transform_is_found():
  tx = desloc(ADAM, PAPER)

  def update(grads, params):
    grads = jax.lax.pmean(grads, 'workers')  # A user who averages gradients out of habit.
    return tx.update(grads, tx.init(params), params)

  jaxpr = jax.make_jaxpr(update, axis_env=[('workers', 4)])(PARAMS, PARAMS)
  with pytest.raises(UnconditionalExchangeError, match='outside a conditional'):
    read_ledger(jaxpr, PAPER, 4)


def test_a_sync_in_a_scan_counts_once_for_each_turn():
  tx = functools.partial(desloc, ADAM, PAPER)()

  def steps(grads, params):
    def body(state, _):
      return tx.update(grads, state, params)[1], None

    return jax.lax.scan(body, tx.init(params), None, length=5)[0]

  jaxpr = jax.make_jaxpr(steps, axis_env=[('workers', 4)])(PARAMS, PARAMS)
  assert read_ledger(jaxpr, PAPER, 4).bytes_per_sync == dict.fromkeys(PAPER, 5 * SIZE)


def test_local_uses_of_the_axis_send_nothing():
  jaxpr = trace(lambda x: x + jax.lax.axis_index('workers') + jax.lax.axis_size('workers'))
  assert read_ledger(jaxpr, {}, 4).bytes_per_sync == {}


def test_a_sync_without_a_period_is_not_left_out():
  with pytest.raises(ValueError, match='is averaged, but periods has only params'):
    transform_ledger(desloc(ADAM, PAPER), PARAMS, {'params': 256}, 4)


def test_the_ledger_of_a_transform_over_two_axes():
  tx = desloc(ADAM, PAPER, axis_name=('workers', 'replicas'))
  ledger = transform_ledger(tx, PARAMS, PAPER, 4, axis_name=('workers', 'replicas'))
  assert ledger.bytes_per_sync == dict.fromkeys(PAPER, SIZE)


def test_one_worker_sends_nothing():
  ledger = transform_ledger(desloc(ADAM, PAPER), PARAMS, PAPER, 1)
  assert ledger.bytes_per_step == 0
