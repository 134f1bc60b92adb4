"""The chunked loss against NumPy in float64, and that it never holds all scores."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from desloc_jax import model
from tests.references.gpt_reference import (
  loss_and_grads,
  paper_config,
  params,
  reference_hidden,
  reference_losses,
  TINY,
  tokens,
)


@pytest.mark.parametrize('loss_chunk', [1, 20, 2048])
def test_loss_matches_the_reference(loss_chunk):
  config = dataclasses.replace(TINY, loss_chunk=loss_chunk)
  batch = tokens(3, 18)
  hidden = reference_hidden(params(TINY), batch[:, :-1], TINY)
  exact, _ = reference_losses(hidden, params(TINY)['embedding'], batch[:, 1:])
  losses = jax.jit(model.sequence_losses, static_argnums=2)(params(TINY), batch, config)
  assert losses.shape == (3,) and losses.dtype == jnp.float32
  np.testing.assert_allclose(losses, exact.mean(1), rtol=1e-5)
  loss = jax.jit(model.next_token_loss, static_argnums=2)(params(TINY), batch, config)
  assert loss.shape == () and loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, exact.mean(), rtol=1e-5)


def test_an_untied_output_has_scores_and_gradients_of_its_own():
  config = dataclasses.replace(TINY, tie_embeddings=False)
  own, batch = params(config), tokens(3, 18)
  hidden = reference_hidden(own, batch[:, :-1], config)
  exact, errors_BxLxV = reference_losses(hidden, own['output_embedding'], batch[:, 1:])
  tied, _ = reference_losses(hidden, own['embedding'], batch[:, 1:])
  assert abs(exact.mean() - tied.mean()) > 1e-3
  step = jax.jit(jax.value_and_grad(model.next_token_loss), static_argnums=2)
  loss, grads = step(own, batch, config)
  np.testing.assert_allclose(loss, exact.mean(), rtol=1e-5)
  gradient = np.einsum('blv,bld->vd', errors_BxLxV, hidden) / exact.size
  np.testing.assert_allclose(grads['output_embedding'], gradient, rtol=1e-3, atol=1e-6)
  # The input embedding learns from lookups alone: nothing where no token was read.
  unread = np.setdiff1d(np.arange(config.vocab_size), batch[:, :-1])
  assert len(unread) and not np.any(grads['embedding'][unread])
  assert np.any(loss_and_grads(TINY)[1]['embedding'][unread])


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(
  batch=st.integers(1, 4),
  length=st.integers(1, 13),
  vocab=st.integers(1, 9),
  loss_chunk=st.integers(1, 60),
  seed=st.integers(0, 99),
)
def test_any_chunk_gives_the_exact_losses_and_gradients(batch, length, vocab, loss_chunk, seed):
  noise = np.random.default_rng(seed)
  hidden = noise.normal(size=(batch, length, 6)).astype(np.float32)
  embedding = 2 * noise.normal(size=(vocab, 6)).astype(np.float32)
  targets = noise.integers(vocab, size=(batch, length))
  weights = noise.normal(size=(batch, length)).astype(np.float32)

  @jax.jit
  def losses_and_gradients(hidden, embedding):
    losses, pull_back = jax.vjp(
      lambda h, e: model.token_losses(h, e, targets, loss_chunk), hidden, embedding
    )
    return losses, *pull_back(weights)

  losses, grad_hidden, grad_embedding = losses_and_gradients(hidden, embedding)
  exact, errors_BxLxV = reference_losses(hidden, embedding, targets)
  errors_BxLxV *= weights[..., None]
  np.testing.assert_allclose(losses, exact, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(grad_hidden, errors_BxLxV @ embedding, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    grad_embedding, np.einsum('blv,bld->vd', errors_BxLxV, hidden), rtol=1e-4, atol=1e-4
  )


def test_embedding_gradient_is_summed_in_float32():
  # 1,024 chunks with the same gradient: a bfloat16 sum stops growing after 256 of them.
  hidden = jnp.ones((1, 1024, 4), jnp.bfloat16)
  targets = jnp.zeros((1, 1024), jnp.int32)
  grad = jax.grad(lambda e: model.token_losses(hidden, e, targets, 1).sum())(jnp.zeros((2, 4)))
  assert grad.dtype == jnp.float32
  np.testing.assert_array_equal(grad, [[-512.0] * 4, [512.0] * 4])


def array_sizes(jaxpr):
  """Yields the number of elements of every array that a jaxpr, or one inside it, computes."""
  for eqn in jaxpr.eqns:
    yield from (var.aval.size for var in eqn.outvars)
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from array_sizes(inner)


@pytest.mark.parametrize('loss_chunk', [2048, 1_000_000])
def test_training_never_holds_all_scores(loss_chunk):
  batch, length = 8, 2048
  config = paper_config('16M', loss_chunk=loss_chunk, remat='dots', compute_dtype='bfloat16')
  shapes = jax.eval_shape(functools.partial(model.init_params, config), jax.random.key(0))
  step = jax.value_and_grad(functools.partial(model.next_token_loss, config=config))
  jaxpr = jax.make_jaxpr(step)(shapes, jax.ShapeDtypeStruct((batch, length + 1), jnp.int32))
  scores = batch * length * config.vocab_size
  largest = max(array_sizes(jaxpr.jaxpr))
  if loss_chunk < batch * length:
    # The largest is one chunk of scores, or the attention scores that cuDNN would not hold.
    assert largest <= max(loss_chunk * config.vocab_size, batch * config.heads * length**2)
    assert largest < scores / 2
  else:
    assert largest == scores  # What the walk would find if the chunks were not there.


def test_compiled_memory_does_not_hold_all_scores():
  config = model.GPTConfig(50_368, 1, 16, 2, seq_len=1024, loss_chunk=64, attention='xla')
  shapes = jax.eval_shape(functools.partial(model.init_params, config), jax.random.key(0))
  batch = jax.ShapeDtypeStruct((4, 1025), jnp.int32)
  step = jax.value_and_grad(functools.partial(model.next_token_loss, config=config))
  memory = jax.jit(step).lower(shapes, batch).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 4 * 1024 * config.vocab_size * 4 / 4
