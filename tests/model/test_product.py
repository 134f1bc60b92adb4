"""The matmul with its own backward pass."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from desloc_jax.model.product import product


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-6), ('bfloat16', 5e-2)])
def test_values_and_gradients_are_those_of_a_matmul(dtype, tolerance):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 3, 5, 4), dtype)
  kernel = jax.random.normal(keys[1], (2, 4, 7), dtype)
  weights = jax.random.normal(keys[2], (2, 3, 5, 7), dtype)

  def loss(product):
    # Mapped, as replicas are; a derivative follows, as an activation's does.
    return lambda x, kernel: (jax.nn.silu(jax.vmap(product)(x, kernel)) * weights).sum()

  found = jax.jit(jax.value_and_grad(loss(product), (0, 1)))(x, kernel)
  x, kernel, weights = (np.asarray(a, np.float64) for a in (x, kernel, weights))
  result = np.einsum('wbld,wdf->wblf', x, kernel)
  share = 1 / (1 + np.exp(-result))
  gradient = weights * share * (1 + result * (1 - share))
  expected = (
    (result * share * weights).sum(),
    (np.einsum('wblf,wdf->wbld', gradient, kernel), np.einsum('wbld,wblf->wdf', x, gradient)),
  )
  assert jax.tree.leaves(found)[1].dtype == jnp.dtype(dtype)
  for ours, reference in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    error = np.abs(np.asarray(ours, np.float64) - reference).max()
    assert error <= tolerance * np.abs(reference).max()


def test_the_barrier_is_in_programs_for_cpus_only():
  gradient = jax.jit(jax.grad(lambda x, kernel: product(x, kernel).sum(), (0, 1)))
  traced = gradient.trace(jnp.ones((2, 3)), jnp.ones((3, 4)))
  programs = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ('cpu', 'tpu')}
  barriers = {
    name: len(re.findall('optimization_barrier', text)) for name, text in programs.items()
  }
  assert barriers == {'cpu': 1, 'tpu': 0}
  assert 'conditional' not in traced.lower().compile().as_text()  # Of the choice nothing is left.
