"""Syncs on any number of devices, with workers that do not count."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from desloc_jax.optimizer import syncs
from desloc_jax.optimizer.over_workers import AXIS_NAMES, over_workers
from desloc_jax.optimizer.syncs import MEMORY_AXES
from desloc_jax.optimizer.syncs.compressed import vectors
from desloc_jax.programs.hlo import read_collectives
from tests.syncing import (
  bits_of,
  BLOCK,
  EVERY,
  init,
  make_reduce,
  MANY,
  on_devices,
  random_locals,
  TREE,
)


def layouts():
  return [(8, 1), (2, 1), (2, 2)]  # A worker a device, several a device, several devices a worker.


@pytest.mark.parametrize('name', EVERY)
def test_all_layouts_agree_and_who_does_not_count_adds_nothing(name):
  sync = EVERY[name]
  local, shared = random_locals(0, TREE, MANY), jax.tree.map(lambda x: x[0], random_locals(1, TREE))
  weights = jnp.array([1.0, 2.0, 0.0, 1.0, 1.0, 0.5, 3.0, 1.0])
  broken = jax.tree.map(lambda x: x.at[2].set(jnp.nan), local)
  expected, memory = on_devices(sync, 1, 1, broken, shared, weights)
  assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(expected))
  start = init(sync, TREE, MANY)
  kept = lambda tree: jax.tree.map(lambda x: x[2], tree.own)
  assert bits_of(kept(memory)) == bits_of(kept(start))
  for rows, fsdp in layouts():
    agreed, after = on_devices(sync, rows, fsdp, broken, shared, weights)
    for x in jax.tree.leaves(agreed):  # Each device decoded them itself.
      if x.is_fully_replicated:
        assert len({np.asarray(shard.data).tobytes() for shard in x.addressable_shards}) == 1
    close = lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-5, atol=1e-6
    )
    jax.tree.map(close, agreed, expected)
    if fsdp == 1:  # Else other workers average the slices, and keep their errors.
      jax.tree.map(close, after, memory)


@pytest.mark.parametrize('fsdp', [1, 2])
def test_large_arrays_are_cut_where_devices_share_them(fsdp, monkeypatch):
  """Blocks are the same on any number of devices; nothing is gathered to cut them."""
  monkeypatch.setattr(vectors, 'PACKED_BYTES', 1024)
  like = {'stack': jnp.zeros((3, 32, 24)), 'odd': jnp.zeros((17, 31)), 'small': jnp.zeros(5)}
  local = random_locals(0, like, 4)
  sync = syncs.quantised(8, BLOCK)
  expected, _ = make_reduce(sync)(local, None, init(sync, like, 4))
  mesh = Mesh(
    np.array(jax.devices()[: 4 * fsdp]).reshape(4, fsdp),
    ('workers', 'fsdp'),
    axis_types=(AxisType.Auto,) * 2,
  )

  def of_worker(local, memory):
    return sync.reduce(local, None, memory, syncs.Context(AXIS_NAMES, None, jnp.int32(0)))

  step = over_workers(of_worker, mesh, (0, MEMORY_AXES), (None, MEMORY_AXES))
  specs = {'stack': P(None, 'fsdp'), 'odd': P(), 'small': P()}
  shared = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
  own = jax.tree.map(lambda spec: NamedSharding(mesh, P('workers', *spec)), specs)
  memory = syncs.Memory(own, ())
  step = jax.jit(step, in_shardings=(own, memory), out_shardings=(shared, memory))
  agreed, _ = step(local, init(sync, like, 4))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), agreed, expected
  )
  text = step.lower(local, init(sync, like, 4)).compile().as_text()
  inside = [
    c for c in read_collectives(text) if not c.crosses([i // fsdp for i in range(4 * fsdp)])
  ]
  assert all(c.result_bytes < 3 * 32 * 24 * 4 for c in inside)  # None of the stack.
