"""A local step by `step` writes over the old state, and copies nothing: read off the compiled program."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import optax
import pytest

from desloc_jax import (
  AXIS_NAMES,
  desloc,
  HealthCheck,
  init_over_workers,
  over_workers,
  WORKER_AXES,
)
from tests.adam_workers import ADAM, adam_periods
from tests.workers import jit_as_users

OPTIONS = {
  'mean': {},
  'outer': {'outer': optax.sgd(0.7, momentum=0.9, nesterov=True)},
  'health': {'health': HealthCheck()},
}


def unconditional_copies(text):
  """Returns the shapes that ENTRY and the branches that local steps take copy, scalars apart."""
  computations = dict(re.findall(r'^(?:ENTRY )?%([\w.\-]+) \(.*?\{\n(.*?)^\}', text, re.M | re.S))
  entry = re.search(r'^ENTRY %([\w.\-]+)', text, re.M).group(1)
  lines = computations[entry]
  # A boolean predicate has true_computation and false_computation, an index has branches from 0.
  for taken in re.findall(r'(?:false_computation=|branch_computations=\{)%([\w.\-]+)', lines):
    lines += computations[taken]
  return re.findall(r'= (f32\[[\d,]*1001\])\S* copy\(', lines)


@pytest.mark.parametrize('workers', [2, 4], ids=['one a device', 'two a device'])
@pytest.mark.parametrize('name', OPTIONS)
def test_a_local_step_copies_nothing(name, workers):
  tx = desloc(ADAM, adam_periods(2, 4, 6), AXIS_NAMES, **OPTIONS[name])
  mesh = jax.make_mesh((2,), ('workers',), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
  params, state = init_over_workers(tx, {'w': jnp.ones(1001)}, mesh, workers)
  axes = (None, WORKER_AXES)
  step = over_workers(
    lambda params, state, grads: tx.step(grads, state, params), mesh, (*axes, 0), axes
  )

  def copies(**options):
    compiled = jit_as_users(step, **options).lower(params, state, state.params).compile()
    return unconditional_copies(compiled.as_text())

  assert not copies(donate_argnums=(0, 1))
  if name == 'mean':
    assert copies()  # The consensus, which comes out as it went in: copies are seen.
