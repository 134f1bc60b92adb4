"""The default syncs have the bits that the transform had before syncs were values.

XLA decides how it rounds, so the hashes hold for one version of it and kind of processor.
"""

import functools
import hashlib
import platform

import jax
from jax.sharding import AxisType
import jaxlib
import numpy as np
import optax
import pytest

from desloc_jax import desloc, HealthCheck
from tests import workers
from tests.adam_workers import ADAM, adam_periods, gradient, PARAMS

NESTEROV = optax.sgd(0.7, momentum=0.9, nesterov=True)
CONFIGURATIONS = {
  'averaging': functools.partial(desloc, ADAM, adam_periods(3, 4, 6)),
  'nesterov': functools.partial(desloc, ADAM, adam_periods(2, 3, 5), outer=NESTEROV),
  'pre': functools.partial(desloc, ADAM, adam_periods(3, 4, 6), timing='pre'),
  'reset': functools.partial(desloc, ADAM, adam_periods(3, None, None), reset=('mu', 'nu')),
  'health': functools.partial(desloc, ADAM, adam_periods(3, 6, None), health=HealthCheck()),
  'warm-up and coins': functools.partial(
    desloc, ADAM, adam_periods(3, 4, None), warmup_steps=2, coin_key=jax.random.key(1)
  ),
}
RECORDED_ON = 'jaxlib 0.10.2, x86_64'
HASHES = {
  ('averaging', 'vmapped'): 'd01aec78c65539da',
  ('averaging', 'on_devices'): '5412624e901ff2fa',
  ('nesterov', 'vmapped'): '24331b6b810ca22b',
  ('nesterov', 'on_devices'): '94030f3454c91570',
  ('pre', 'vmapped'): '7df3a2898fe018a6',
  ('pre', 'on_devices'): 'f904b1e0c145af45',
  ('reset', 'vmapped'): '10d10073729cfe61',
  ('reset', 'on_devices'): '2af159ed5a70675b',
  ('health', 'vmapped'): '32e9b56d4a93d711',
  ('health', 'on_devices'): '702b3e6e7d001f75',
  ('warm-up and coins', 'vmapped'): 'a6b6d42d6e059bda',
  ('warm-up and coins', 'on_devices'): '50a459a6762f5a72',
}


def on_devices(tx):
  mesh = jax.make_mesh((4,), ('workers',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
  step = jax.jit(workers.make_manual_step(tx, gradient, mesh))
  state, params = workers.init(tx, PARAMS, 4), PARAMS
  for t in range(12):
    state, params = step(t, state, params)
  return state, params


def vmapped(tx):
  *_, last = workers.run(tx, PARAMS, gradient, 4, 12)
  return last


def digest(tree) -> str:
  whole = hashlib.sha256()
  for x in jax.tree.leaves(tree):
    whole.update(np.asarray(x).tobytes())
  return whole.hexdigest()[:16]


@pytest.mark.parametrize('layout', [vmapped, on_devices])
@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_states_are_what_they_were(name, layout):
  here = f'jaxlib {jaxlib.__version__}, {platform.machine()}'
  if here != RECORDED_ON:
    pytest.skip(f'recorded on {RECORDED_ON}, this is {here}')
  assert digest(layout(CONFIGURATIONS[name]())) == HASHES[name, layout.__name__]
