"""Which states are averaged, at which periods, and what is refused."""

import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx, struct
from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import optax
import pytest

from desloc_jax import desloc, half_life, periods_from_half_lives
from desloc_jax.optimizer.ddp import ddp
from desloc_jax.optimizer.state_fields import label_fields
from tests.adam_workers import ADAM, adam_periods, last, PARAMS
from tests.fuzzing import fuzz


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


# Parameters in any container, whose places and names look like those of an optimizer's state.


class Pair(NamedTuple):
  mu: Any
  nu: Any


@struct.dataclass
class Struct:
  trace: Any
  mu: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=['nu', 'count'], meta_fields=[])
@dataclasses.dataclass
class Data:
  nu: Any
  count: Any


def chained(inner):
  return optax.chain(optax.clip_by_global_norm(1.0), inner)


def masked_first(inner):
  """Of the first parameter only."""

  def mask(params):
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [i == 0 for i in range(len(leaves))])

  return optax.masked(inner, mask)


def partitioned(inner):
  labels = lambda params: jax.tree.map(lambda _: 'all', params)
  return optax.partition({'all': inner, 'none': optax.sgd(1.0)}, labels)


PLACES = {
  'alone': lambda inner: inner,
  'in a chain': chained,
  'in chains': lambda inner: chained(chained(chained(inner))),
  'in a chain with names': lambda inner: optax.named_chain(('mu', optax.identity()), ('0', inner)),
  'under a mask': lambda inner: chained(masked_first(inner)),
  'in a partition': lambda inner: chained(partitioned(inner)),
  'if finite': lambda inner: optax.apply_if_finite(chained(inner), 3),
  'injected': lambda inner: optax.inject_hyperparams(lambda w: optax.chain(optax.scale(w), inner))(
    w=1.0
  ),
}
X, Y, SCALAR = jnp.ones((2, 3)), jnp.ones(3), jnp.float32(1.0)
CONTAINERS = {
  'layers': [(X, Y), (X, Y)],
  'tuple of another depth': (X, (Y, X)),
  'list of another depth': [[X, [Y]], X],
  'named tuple': Pair(Pair(X, Y), (X, Y)),
  'struct': Struct(Struct(X, [Y, X]), X),
  'dataclass': Data(Pair(X, Y), Data(X, Y)),
  'nnx': nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param),
  'named like fields': {'mu': X, 'nu': {'mu': Y, 'count': X}, '0': X, 'inner_state': (X, Y)},
  'named like a hyperparameter': {'w': SCALAR},
  'scalars': [SCALAR, (X, SCALAR)],
  'one in a tuple': (X,),
  'bare': X,
  'numbers': {0: X, 1: {0: Y}},
}
INNERS = {
  'adam': (optax.scale_by_adam(), {'mu', 'nu'}),
  'trace': (optax.trace(0.9), {'trace'}),
  'ademamix': (optax.contrib.scale_by_ademamix(), {'m1', 'm2', 'nu'}),
}


def assert_every_moment_is_found(inner, fields, params, place):
  """Each under its name, as many arrays as there are parameters (under the mask: one)."""
  state = PLACES[place](inner).init(params)
  found = [label for label in label_fields(state, params) if label is not None]
  count = 1 if place == 'under a mask' else len(jax.tree.leaves(params))
  assert sorted(found) == sorted(list(fields) * count)


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('container', CONTAINERS)
def test_moments_of_parameters_in_any_container(container, place):
  for inner, fields in INNERS.values():
    assert_every_moment_is_found(inner, fields, CONTAINERS[container], place)


NAMES = ('mu', 'nu', 'trace', '0', 'count', 'inner_state', 'hyperparams', 'w')
TREES = st.recursive(
  st.sampled_from([X, Y, SCALAR]),
  lambda part: st.one_of(
    st.lists(part, min_size=1, max_size=3),
    st.lists(part, min_size=1, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(NAMES), part, min_size=1, max_size=3),
    st.builds(Pair, part, part),
    st.builds(Struct, part, part),
    st.builds(Data, part, part),
  ),
  max_leaves=8,
)


@fuzz(400)
@given(params=TREES, place=st.sampled_from(sorted(PLACES)), inner=st.sampled_from(sorted(INNERS)))
def test_moments_of_any_parameters(params, place, inner):
  assert_every_moment_is_found(*INNERS[inner], params, place)


@pytest.mark.parametrize('container', ['layers', 'tuple of another depth', 'struct', 'scalars'])
def test_moments_in_any_container_are_averaged(container):
  params = CONTAINERS[container]
  state, consensus = last(desloc(ADAM, adam_periods(2, 2, 2)), count=2, steps=2, params=params)
  adam = state.inner[1][0]
  for name in (adam.mu, adam.nu, state.params):
    assert all((x[0] == x[1]).all() for x in jax.tree.leaves(name))
  assert jax.tree.structure(consensus) == jax.tree.structure(params)


def test_states_of_one_array_for_each_axis_in_lists():
  assert labels(optax.chain(optax.identity(), optax.sm3(1.0)), [X, (Y, X)]) == {'mu', 'nu'}
