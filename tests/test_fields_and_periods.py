"""Which states are averaged, at which periods, and what is refused."""

import jax.numpy as jnp
import optax
import pytest

from desloc_jax import desloc, half_life, periods_from_half_lives
from desloc_jax.optimizer.ddp import ddp
from desloc_jax.optimizer.state_fields import label_fields
from tests.adam_workers import ADAM, adam_periods, last, PARAMS


def labels(inner, params=PARAMS):
  return {label for label in label_fields(inner.init(params), params) if label}


def test_fields_are_found_wherever_they_sit():
  by_kind = {'w': 'matrix', 'b': 'rest'}
  assert labels(ADAM) == {'mu', 'nu'}
  assert labels(optax.masked(optax.adam(1.0), {'w': True, 'b': False})) == {'mu', 'nu'}
  assert labels(optax.inject_hyperparams(optax.adam)(learning_rate=1.0)) == {'mu', 'nu'}
  partition = optax.partition(
    {'matrix': optax.sgd(1.0, momentum=0.9), 'rest': optax.adam(1.0)}, by_kind
  )
  assert labels(partition) == {'trace', 'mu', 'nu'}
  assert labels(optax.contrib.ademamix(1.0)) == {'m1', 'm2', 'nu'}
  assert labels(optax.sgd(1.0)) == set()


def test_moments_of_one_element_parameters_are_averaged():
  scalar = {'b': jnp.float32(1.0)}
  assert labels(optax.adam(1.0), scalar) == {'mu', 'nu'}
  state, _ = last(desloc(optax.adam(0.1), adam_periods(2, 2, 2)), steps=2, params=scalar)
  mu = state.inner[0].mu['b']
  assert mu.shape == (4,) and len(set(mu.tolist())) == 1


def test_parameter_names_are_not_taken_for_fields():
  params = {'nu': {'mu': jnp.ones(3)}}
  assert labels(optax.sgd(1.0, momentum=0.9), params) == {'trace'}


def test_bare_array_parameters():
  state, params = last(desloc(optax.adam(0.1), adam_periods(2, 2, 2)), params=jnp.ones(5))
  assert state.params.shape == (4, 5) and params.shape == (5,)


@pytest.mark.parametrize('period', [0, -1, 1.5, True, 'often', float('nan')])
def test_a_period_that_is_no_number_of_steps_is_refused(period):
  with pytest.raises(ValueError, match="periods\\['mu'\\].*whole number of steps >= 1"):
    desloc(ADAM, adam_periods(1, period, 1))


def test_parameters_need_a_period():
  with pytest.raises(ValueError, match="'params'"):
    desloc(ADAM, {'mu': 1, 'nu': 1})


def test_a_field_without_a_period_is_refused():
  with pytest.raises(ValueError, match='no entry for the inner state field.* nu:.*found: mu, nu'):
    desloc(ADAM, {'params': 1, 'mu': 1}).init(PARAMS)


def test_a_period_without_a_field_is_refused():
  with pytest.raises(ValueError, match='names trace.*found: mu, nu'):
    desloc(ADAM, {'params': 1, 'mu': 1, 'nu': 1, 'trace': 1}).init(PARAMS)


def test_unknown_timing_is_refused():
  with pytest.raises(ValueError, match="'post' or 'pre'"):
    desloc(ADAM, adam_periods(1, 1, 1), timing='after')


@pytest.mark.parametrize(
  'tx', [desloc(ADAM, adam_periods(1, 1, 1)), ddp(ADAM)], ids=['desloc', 'ddp']
)
def test_use_outside_the_axis_is_refused(tx):
  with pytest.raises(ValueError, match="'workers' is not bound"):
    tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_missing_params_are_refused():
  tx = desloc(ADAM, adam_periods(1, 1, 1))
  with pytest.raises(ValueError, match='consensus'):
    tx.update(PARAMS, tx.init(PARAMS))


def test_half_lives_of_the_paper():
  expected = {0.9: 6.6, 0.95: 13.5, 0.999: 692.8, 0.9999: 6931.1}
  for decay, steps in expected.items():
    assert half_life(decay) == pytest.approx(steps, abs=0.05)


def test_periods_from_half_lives():
  assert periods_from_half_lives(256) == {'params': 256, 'mu': 768, 'nu': 1536}
  assert periods_from_half_lives(16, {'mu': 0.9, 'nu': 0.0}) == {'params': 16, 'mu': 16, 'nu': 16}
  assert periods_from_half_lives(1, {'nu': 0.999})['nu'] == 693
  with pytest.raises(ValueError, match='decay'):
    periods_from_half_lives(16, {'mu': 1.0})
  with pytest.raises(ValueError, match="'params'.*>= 1"):
    periods_from_half_lives(0)


def test_scalars_are_no_state_of_parameters_that_are_arrays():
  """Parameters named like hyperparameters, and bare arrays, which have no name at all."""
  layers = {'w1': jnp.ones((2, 3)), 'b1': jnp.ones(3), 'w2': jnp.ones((3, 1)), 'b2': jnp.ones(1)}
  injected = optax.inject_hyperparams(optax.adam)(learning_rate=1.0)
  assert labels(injected, layers) == {'mu', 'nu'}
  assert labels(injected, jnp.ones(3)) == {'mu', 'nu'}
  assert labels(optax.contrib.schedule_free_sgd(1.0), jnp.ones(3)) == {'z'}


def test_states_of_one_array_for_each_axis_of_a_parameter():
  assert labels(optax.sm3(1.0), {'w': jnp.ones((2, 3))}) == {'mu', 'nu'}


def test_a_field_named_params_is_refused():
  with pytest.raises(ValueError, match='reserves'):
    desloc(optax.scale_by_lbfgs(), {'params': 1}).init({'w': jnp.ones(3)})
