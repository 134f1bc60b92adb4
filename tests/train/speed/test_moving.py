"""Arrays that go to the device that exchanges, and back, as they lie on those that make steps."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from desloc_jax.train.speed.moving import to_exchange, to_steps


def test_what_is_split_over_devices_becomes_one_and_is_split_again():
  *devices, aside = jax.devices()[:5]
  steps = Mesh(np.array(devices).reshape(2, 2), ('workers', 'fsdp'))
  specs = {'own': [P('workers', None, 'fsdp'), P('workers')], 'shared': [P('fsdp'), P()]}
  tree = {
    'own': [np.arange(24.0, dtype=np.float32).reshape(2, 3, 4), np.arange(2, dtype=np.int32)],
    'shared': [np.arange(4.0, dtype=np.float32), np.float32(3)],
  }
  shardings = jax.tree.map(
    lambda spec: NamedSharding(steps, spec), specs, is_leaf=lambda x: isinstance(x, P)
  )
  placed = jax.device_put(tree, shardings)
  there = to_exchange(placed, {'own': 0, 'shared': None}, Mesh(np.array([aside]), ('workers',)))
  jax.tree.map(np.testing.assert_array_equal, there, tree)
  assert {device for x in jax.tree.leaves(there) for device in x.devices()} == {aside}
  jax.tree.map(lambda x: x.delete(), placed)  # As a step that takes them over does.
  back = to_steps(there, shardings)
  jax.tree.map(np.testing.assert_array_equal, back, tree)
  assert jax.tree.map(lambda x: x.sharding, back) == shardings
