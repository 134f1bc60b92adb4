"""The default syncs have the bits that the transform had before syncs were values.

XLA decides how it rounds, so the hashes hold for one version of it and kind of processor. Programs
are compiled as users have them: with less optimisation XLA rounds a local step otherwise when what is
beside it in the program changes.
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
  ('averaging', 'vmapped'): '4c35d0538fd8e2b5',
  ('averaging', 'on_devices'): '0dafebe256770e16',
  ('nesterov', 'vmapped'): 'f1c2c21c994dad24',
  ('nesterov', 'on_devices'): '52bd89705454814f',
  ('pre', 'vmapped'): 'aab8b800ac78e97d',
  ('pre', 'on_devices'): 'c7948ab916286c01',
  ('reset', 'vmapped'): 'f0d238eabd53b061',
  ('reset', 'on_devices'): '6a92ddee82688c50',
  ('health', 'vmapped'): 'e95733a411d36f75',
  ('health', 'on_devices'): '432b443b56ef9d42',
  ('warm-up and coins', 'vmapped'): 'e29a59c161d8142d',
  ('warm-up and coins', 'on_devices'): '659013ff3789e34c',
}


def on_devices(tx, move):
  mesh = jax.make_mesh((4,), ('workers',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
  step = workers.jit_as_users(workers.make_manual_step(tx, gradient, mesh, move))
  state, params = workers.init(tx, PARAMS, 4), PARAMS
  for t in range(12):
    state, params = step(t, state, params)
  return state, params


def vmapped(tx, move):
  *_, last = workers.run(tx, PARAMS, gradient, 4, 12, workers.jit_as_users, move=move)
  return last


def digest(tree) -> str:
  whole = hashlib.sha256()
  for x in jax.tree.leaves(tree):
    whole.update(np.asarray(x).tobytes())
  return whole.hexdigest()[:16]


@pytest.mark.parametrize('move', [workers.by_update, workers.by_step])
@pytest.mark.parametrize('layout', [vmapped, on_devices])
@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_states_are_what_they_were(name, layout, move):
  here = f'jaxlib {jaxlib.__version__}, {platform.machine()}'
  if here != RECORDED_ON:
    pytest.skip(f'recorded on {RECORDED_ON}, this is {here}')
  assert digest(layout(CONFIGURATIONS[name](), move)) == HASHES[name, layout.__name__]
