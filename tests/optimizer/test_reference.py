"""The transform against the NumPy float64 reference, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from desloc_jax import desloc
from tests import problems, workers
from tests.references import reference

WORKERS, STEPS, RATE, RHO = 3, 60, 0.05, 1.0
PERIODS = (4, 6, 10)
INNERS = {
  'adam': (optax.adam(RATE), ('mu', 'nu'), functools.partial(reference.adam_step, eta=RATE)),
  'sgdm': (
    optax.sgd(RATE, momentum=0.9),
    ('trace',),
    functools.partial(reference.sgdm_step, eta=RATE),
  ),
}


@pytest.mark.parametrize('outer', [None, (0.7, 0.9)], ids=['averaging', 'nesterov'])
@pytest.mark.parametrize('timing', ['post', 'pre'])
@pytest.mark.parametrize('guard', [False, True], ids=['printed', 'guarded'])
@pytest.mark.parametrize('name', INNERS)
def test_trajectory_equals_reference(name, guard, timing, outer):
  inner, fields, local_step = INNERS[name]
  bound = reference.moment_bound(0.9, 0.999) if guard else None
  of_all, of_worker, x0 = problems.quadratic(WORKERS, STEPS)
  expected_local, expected_consensus = reference.desloc(
    of_all,
    np.tile(x0, (WORKERS, 1)),
    STEPS,
    PERIODS,
    local_step,
    timing=timing,
    rho=RHO,
    outer=outer,
    bound=bound if 'nu' in fields else None,
  )
  with jax.enable_x64(True):
    tx = desloc(
      optax.chain(optax.clip_by_global_norm(RHO), inner),
      dict(zip(('params', *fields), PERIODS, strict=False)),
      outer=optax.sgd(outer[0], momentum=outer[1], nesterov=True) if outer else None,
      timing=timing,
      guard=guard,
    )
    trajectory = workers.run(tx, {'w': jnp.asarray(x0)}, of_worker, WORKERS, STEPS)
    for t, (state, params) in enumerate(trajectory):
      assert params['w'].dtype == jnp.float64
      np.testing.assert_allclose(state.params['w'], expected_local[t], rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(params['w'], expected_consensus[t], rtol=1e-9, atol=1e-12)


def test_timings_differ_in_the_reference():
  """Guards the test above: a reference that ignored `timing` could not tell the two apart."""
  of_all, _, x0 = problems.quadratic(WORKERS, STEPS)
  x0 = np.tile(x0, (WORKERS, 1))
  runs = [
    reference.desloc(of_all, x0, STEPS, PERIODS, INNERS['adam'][2], timing=timing, rho=RHO)[0]
    for timing in ('post', 'pre')
  ]
  assert np.abs(runs[0] - runs[1]).max() > 1e-3


def test_the_bound_binds_in_the_reference():
  """Guards the test above: else 'printed' and 'guarded' would be one trajectory."""
  of_all, _, x0 = problems.quadratic(WORKERS, STEPS)
  x0 = np.tile(x0, (WORKERS, 1))
  run = lambda bound: reference.desloc(
    of_all, x0, STEPS, PERIODS, INNERS['adam'][2], timing='post', rho=RHO, bound=bound
  )[0]
  assert np.abs(run(reference.moment_bound(0.9, 0.999)) - run(None)).max() > 1e-3
