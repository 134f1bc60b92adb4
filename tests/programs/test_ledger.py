"""The ledger: bytes from jaxprs, and refusal of what crosses outside a conditional."""

import functools
import math
import types

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
import optax
import pytest

from desloc_jax import AXIS_NAMES, desloc, over_workers, WORKER_AXES
from desloc_jax.optimizer.ddp import ddp
from desloc_jax.optimizer.worker_step.frame import SYNC_SCOPE
from desloc_jax.programs.hlo import read_collectives, sync_bytes
from desloc_jax.programs.ledger import read_ledger, transform_ledger, UnconditionalExchangeError
from desloc_jax.train.job import check_compiled, make_job
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
  size = 4 * job.program.parameters
  health = {'health': 80, 'restarts': 2 * size + 8}  # With the counts of Adam and the schedule.
  assert job.ledger.bytes_per_sync == dict.fromkeys(PAPER, size) | health
  assert job.ledger.periods == PAPER | {'health': 256, 'restarts': math.inf}
  tolerance = 2 * 80 / size
  sent = job.ledger.bytes_per_step
  assert job.program.ddp_ledger.bytes_per_step / sent == pytest.approx(512 / 3, rel=tolerance)
  assert job.program.local_adam_ledger.bytes_per_step / sent == pytest.approx(2.0, rel=tolerance)


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


# What is sent, by every primitive, in every dtype, under every control flow.

RING = [(0, 1), (1, 2), (2, 3), (3, 0)]
EXCHANGES = {
  'pmean': lambda x: jax.lax.pmean(x, 'workers'),
  'psum': lambda x: jax.lax.psum(x, 'workers'),
  'pmax': lambda x: jax.lax.pmax(x, 'workers'),
  'all_gather': lambda x: jax.lax.all_gather(x, 'workers').max(axis=0),
  'all_to_all': lambda x: jax.lax.all_to_all(x.reshape(4, -1), 'workers', 0, 0).reshape(-1),
  'psum_scatter': lambda x: jnp.tile(jax.lax.psum_scatter(x, 'workers', tiled=True), 4),
  'ppermute': lambda x: jax.lax.ppermute(x, 'workers', RING),
}


def in_a_sync(exchange, name='x', wrap=lambda f: f):
  """Of 200 values a worker, under a conditional."""

  def step(x):
    with jax.named_scope(SYNC_SCOPE + name):
      return jax.lax.cond(jnp.ones([], bool), wrap(exchange), lambda x: x, x)

  return step


def mesh_of_four():
  return jax.make_mesh((4,), ('workers',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])


def mapped(function, mesh):
  """Over [workers, 200]."""
  spec = P('workers')
  of_row = lambda x: function(x[0])[None]
  return jax.shard_map(of_row, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def sent(function, dtype=jnp.float32, platform=None, **periods):
  shape = jax.ShapeDtypeStruct((4, 200), dtype)
  jaxpr = jax.make_jaxpr(mapped(function, mesh_of_four()))(shape)
  return read_ledger(jaxpr, periods or {'x': 1}, 4, platform=platform).bytes_per_sync


@pytest.mark.parametrize('name', EXCHANGES)
def test_the_operand_of_each_exchange_counts(name):
  assert sent(in_a_sync(EXCHANGES[name])) == {'x': 800}


@pytest.mark.parametrize(
  ('dtype', 'size'),
  [('bfloat16', 400), ('float8_e5m2', 200), ('int8', 200), ('int4', 100), ('uint4', 100),
   ('int2', 50), ('float4_e2m1fn', 100), ('bool', 200), ('int32', 800)],
)  # fmt: skip
def test_values_of_any_dtype_count_their_bits(dtype, size):
  assert sent(in_a_sync(EXCHANGES['ppermute']), dtype) == {'x': size}


def test_a_byte_that_is_begun_counts():
  of_three = lambda x: jnp.concatenate([jax.lax.ppermute(x[:3], 'workers', RING), x[3:]])
  assert sent(in_a_sync(of_three), jnp.int4) == {'x': 2}


WRAPPED = {
  'jit': jax.jit,
  'remat': jax.checkpoint,
  'vmap': lambda f: lambda x: jax.vmap(f)(x[None])[0],
  'gradient': lambda f: jax.grad(lambda x: f(x).sum()),
  'custom gradient': lambda f: _custom_vjp(f),
  'custom tangent': lambda f: _custom_jvp(f),
  'a conditional': lambda f: lambda x: jax.lax.cond(x.sum() > 0, f, lambda x: x, x),
  'a scan of one': lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, 1)[0],
}


def _custom_vjp(f):
  wrapped = jax.custom_vjp(f)
  wrapped.defvjp(lambda x: (f(x), None), lambda _, g: (g,))
  return wrapped


def _custom_jvp(f):
  wrapped = jax.custom_jvp(f)
  wrapped.defjvp(lambda x, t: (f(*x), t[0]))
  return wrapped


@pytest.mark.parametrize('wrap', WRAPPED)
@pytest.mark.parametrize('name', ['psum', 'all_gather', 'ppermute'])
def test_exchanges_are_found_under_anything(wrap, name):
  found = sent(in_a_sync(EXCHANGES[name], wrap=WRAPPED[wrap]))['x']
  # A gradient sends there and back, of an all_gather all that was gathered.
  back = {'gradient': {'all_gather': 3200}.get(name, 800)}
  assert found == 800 + back.get(wrap, 0)


def test_of_the_branches_of_a_switch_the_largest_counts():
  half = lambda x: x + jax.lax.psum(x[:100], 'workers').sum()
  pairs = [lambda x, k=k: jax.lax.ppermute(x, 'workers', [(i, i ^ k) for i in range(4)])
           for k in (1, 2, 3)]  # fmt: skip
  switch = lambda x: jax.lax.switch(jnp.int32(x[0]), [half, *pairs, lambda x: x], x)
  assert sent(in_a_sync(switch)) == {'x': 800}
  nested = lambda x: jax.lax.switch(jnp.int32(x[1]), [switch, half, lambda x: switch(half(x))], x)
  assert sent(in_a_sync(nested)) == {'x': 1200}
  twice = lambda x: jax.lax.scan(lambda c, _: (switch(c), None), x, None, 2)[0]
  assert sent(in_a_sync(twice)) == {'x': 1600}


def test_branches_of_other_quantities_count_each():
  of = lambda name, exchange: lambda x: jax.named_scope(SYNC_SCOPE + name)(exchange)(x)
  branches = [of('x', EXCHANGES['psum']), of('y', EXCHANGES['all_gather']), lambda x: x]
  step = lambda x: jax.lax.switch(jnp.int32(x[0]), branches, x)
  assert sent(step, x=1, y=1) == {'x': 800, 'y': 800}


@pytest.mark.parametrize(
  'dtype', ['float32', 'bfloat16', 'float16', 'float8_e5m2', 'int4', 'int8', 'int2', 'bool']
)
@pytest.mark.parametrize('name', ['pmax', 'all_gather', 'ppermute'])
def test_on_cpus_the_ledger_has_what_the_compiled_program_sends(name, dtype):
  """bfloat16 goes as float32 there, and int4 as bytes."""
  if (name, dtype) == ('pmax', 'int2'):
    pytest.skip('XLA for CPUs has no reduction of it.')
  mesh, step = mesh_of_four(), in_a_sync(EXCHANGES[name])
  if name == 'all_gather':  # Its maximum would be a reduction.
    step = in_a_sync(lambda x: jax.lax.all_gather(x, 'workers')[1])
  sharding = jax.NamedSharding(mesh, P('workers'))
  shape = jax.ShapeDtypeStruct((4, 200), dtype, sharding=sharding)
  unknown = jax.jit(mapped(lambda x: jax.lax.cond(
    jnp.any(x != x[0]), step, lambda x: x, x), mesh))  # fmt: skip
  compiled = unknown.lower(shape).compile().as_text()
  found = sync_bytes(read_collectives(compiled), [0, 1, 2, 3])
  assert found == sent(step, dtype, platform='cpu')


def test_half_precision_of_a_transform_as_cpus_send_it():
  periods = {'params': 8, 'mu': 8, 'nu': 8}
  tx = desloc(optax.adam(1.0, mu_dtype=jnp.bfloat16), periods)
  ledger = transform_ledger(tx, PARAMS, periods, 2, platform='cpu')
  assert ledger.bytes_per_sync == dict.fromkeys(periods, SIZE)


def test_what_is_compiled_otherwise_than_the_ledger_says_is_told(monkeypatch):
  told = []
  monkeypatch.setattr(logging, 'warning', lambda message, *args: told.append(message % args))
  shape = (4, 100_000)
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  mesh = jax.make_mesh((4, 1), ('workers', 'fsdp'), axis_types=(AxisType.Auto,) * 2,
                       devices=jax.devices()[:4])  # fmt: skip
  program = types.SimpleNamespace(config=small_config('.', method='desloc'), mesh=mesh)
  step = mapped(in_a_sync(EXCHANGES['ppermute']), mesh)
  compiled, jaxpr = jax.jit(step).lower(x).compile(), jax.make_jaxpr(step)(x)
  for platform in ('cpu', 'tpu'):
    ledger = read_ledger(jaxpr, {'x': 1}, 4, platform=platform)
    check_compiled(program, compiled, ledger)
  (line,) = [line for line in told if 'An average of' in line]
  assert line == (
    'An average of x sends 400000 bytes a worker, as it was compiled; the ledger counts 200000.'
  )


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_workers_that_share_a_device_send_as_one(devices):
  tx = desloc(ADAM, PAPER, AXIS_NAMES)
  mesh = jax.make_mesh((devices,), ('workers',), axis_types=(AxisType.Auto,),
                       devices=jax.devices()[:devices])  # fmt: skip
  axes = (0, WORKER_AXES, None)
  update = over_workers(tx.update, mesh, axes, (None, WORKER_AXES))
  state = jax.eval_shape(
    lambda p: jax.vmap(lambda: tx.init(p), axis_size=4, out_axes=WORKER_AXES)(), PARAMS
  )
  grads = jax.tree.map(lambda x: jax.ShapeDtypeStruct((4, *x.shape), x.dtype), PARAMS)
  jaxpr = jax.make_jaxpr(update)(grads, state, PARAMS)
  assert read_ledger(jaxpr, PAPER, 4).bytes_per_sync == dict.fromkeys(PAPER, SIZE)
