"""The model against NumPy in float64, and what the trainer relies on: causality, memory, vmap."""

import dataclasses
import functools
import math

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from desloc_jax import errors, model
from desloc_jax.model import gpt, rope
from tests.references.gpt_reference import (
  loss_and_grads,
  params,
  reference_hidden,
  TINY,
  tokens,
)

OTHERS = {
  'qk_norm': {'qk_norm': True},
  'gated': {'mlp': 'gated', 'mlp_hidden': 40, 'norm_eps': 1e-5},
  'kv_heads': {'kv_heads': 2, 'head_size': 12, 'rope_base': 500.0},
  'all': {
    'qk_norm': True,
    'mlp': 'gated',
    'kv_heads': 1,
    'head_size': 10,
    'rope_base': 5e5,
    'attention': 'auto',
  },
}


@pytest.mark.parametrize('changes', [{}, *OTHERS.values()], ids=['default', *OTHERS])
def test_hidden_states_match_the_reference(changes):
  config = dataclasses.replace(TINY, **changes)
  batch = tokens(3, 17)
  hidden = jax.jit(model.GPT(config).apply)({'params': params(config)}, batch)
  assert hidden.shape == (3, 17, 32) and hidden.dtype == jnp.float32
  np.testing.assert_allclose(
    hidden, reference_hidden(params(config), batch, config), rtol=1e-3, atol=1e-4
  )


@pytest.mark.parametrize('changes', [{}, OTHERS['all']], ids=['default', 'all'])
def test_reading_on_from_a_cache_is_reading_at_once(changes):
  config, batch = dataclasses.replace(TINY, **changes), tokens(3, 17)
  at_once = model.GPT(config).apply({'params': params(config)}, batch)

  @jax.jit
  def read_on(cache, new, start):
    variables = {'params': params(config), gpt.CACHE: cache}
    return model.GPT(config).apply(variables, new, start, mutable=[gpt.CACHE])

  cache, parts, start = gpt.empty_cache(config, 3), [], 0
  for length in (9, 1, 7):
    hidden, kept = read_on(cache, batch[:, start : start + length], start)
    cache, start = kept[gpt.CACHE], start + length
    parts.append(hidden)
  np.testing.assert_allclose(jnp.concatenate(parts, 1), at_once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_documents_that_do_not_see_each_other_are_separate_sequences(remat):
  config = dataclasses.replace(TINY, document_end=0, remat=remat)
  first, second, third = (tokens(1, n, seed=n) % 60 + 1 for n in (5, 7, 4))
  end = jnp.zeros((1, 1), jnp.int32)
  together = jnp.concatenate([first, end, second, end, third], 1)
  apply = lambda t: model.GPT(config).apply({'params': params(TINY)}, t)
  parts = [first, jnp.concatenate([end, second], 1), jnp.concatenate([end, third], 1)]
  apart = jnp.concatenate([apply(part) for part in parts], 1)
  np.testing.assert_allclose(apply(together), apart, rtol=1e-4, atol=1e-5)
  seen = model.GPT(TINY).apply({'params': params(TINY)}, together)
  np.testing.assert_allclose(seen[:, :5], apart[:, :5], rtol=1e-4, atol=1e-5)
  assert (np.abs(seen - apart)[:, 5:].max(-1) > 1e-3).all()  # Otherwise they do.


def test_scaled_frequencies_are_those_of_llama_3():
  base, dim, (factor, low, high, positions) = 500_000.0, 128, (8.0, 1.0, 4.0, 8192.0)
  frequencies = base ** -(np.arange(0, dim, 2) / dim)
  expected = []
  for frequency in frequencies:
    wavelength = 2 * math.pi / frequency
    if wavelength < positions / high:
      expected.append(frequency)
    elif wavelength > positions / low:
      expected.append(frequency / factor)
    else:
      smooth = (positions / wavelength - low) / (high - low)
      expected.append((1 - smooth) * frequency / factor + smooth * frequency)
  found = rope.scale_frequencies(jnp.asarray(frequencies), factor, low, high, positions)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  scaled = rope.rope_tables(64, dim, base, (factor, low, high, positions))
  assert not np.allclose(scaled[1], rope.rope_tables(64, dim, base)[1])


def test_hidden_states_see_no_later_token():
  batch = tokens(2, 24)
  changed = batch.at[:, 13].set((batch[:, 13] + 1) % TINY.vocab_size)
  apply = jax.jit(lambda t: model.GPT(TINY).apply({'params': params(TINY)}, t))
  before, after = apply(batch), apply(changed)
  np.testing.assert_array_equal(before[:, :13], after[:, :13])
  assert (np.abs(before - after)[:, 13:].max(-1) > 0).all()  # All later positions see it.


def test_rope_scores_depend_on_distance_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
  tables = rope.rope_tables(32, 16, 10_000.0)
  q, k = (rope.apply_rope(jnp.tile(x, (1, 32, 1, 1)), tables)[0, :, 0] for x in (q, k))
  scores = np.asarray(q @ k.T)
  for distance in range(-31, 32):
    diagonal = np.diagonal(scores, distance)
    np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
  assert np.ptp(scores) > 0.1


def test_logits_are_float32_scores_of_the_tied_embedding():
  hidden = jax.random.normal(jax.random.key(0), (2, 5, 32), jnp.bfloat16)
  scores = model.logits(params(TINY), hidden)
  assert scores.shape == (2, 5, 61) and scores.dtype == jnp.float32
  exact = np.asarray(hidden, np.float64) @ np.asarray(params(TINY)['embedding'], np.float64).T
  np.testing.assert_allclose(scores, exact, atol=0.01)


def test_a_token_outside_the_vocabulary_is_not_silent():
  # Sequence 1 has it as an input only, sequence 2 as a target only.
  batch = tokens(3, 9).at[(1, 2), (0, -1)].set(TINY.vocab_size)
  losses = model.sequence_losses(params(TINY), batch, TINY)
  np.testing.assert_array_equal(np.isnan(losses), [False, True, True])


def test_too_long_a_sequence_is_refused():
  with pytest.raises(errors.UserError, match='25 positions: seq_len is 24'):
    model.next_token_loss(params(TINY), tokens(1, 26), TINY)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'layers': 0}, 'layers is 0'),
    ({'width': 32.0}, 'width is 32.0'),
    ({'seq_len': True}, 'seq_len is True'),
    ({'heads': 3}, 'width is 32 with heads 3: it must be a multiple of 6'),
    ({'heads': 32}, 'width is 32 with heads 32: it must be a multiple of 64'),
    ({'rope_base': math.nan}, 'rope_base is nan'),
    ({'norm_eps': 0.0}, 'norm_eps is 0.0'),
    ({'rope_scaling': (8.0, 4.0, 1.0, 8192.0)}, 'rope_scaling is .* four above 0'),
    ({'kv_heads': 3}, 'kv_heads is 3 with heads 4: it must divide them'),
    ({'head_size': 7}, 'head_size is 7: it must be even'),
    ({'mlp': 'gate'}, "mlp 'gate' .* 'gated'"),
    ({'mlp_hidden': -1}, 'mlp_hidden is -1'),
    ({'qk_norm': 1}, 'qk_norm is 1'),
    ({'tie_embeddings': 'no'}, "tie_embeddings is 'no'"),
    ({'compute_dtype': 'bfloat'}, "compute_dtype 'bfloat' .* 'bfloat16'"),
    ({'remat': 'dot'}, "remat 'dot' .* 'dots'"),
    ({'attention': 'flash'}, "attention 'flash' .* auto, blocks, cudnn, xla"),
    ({'attention': 'cudnn', 'document_end': 0}, 'cannot keep documents apart'),
    ({'attention': 'cudnn'}, "attention is 'cudnn' with compute_dtype 'float32'"),
  ],
)
def test_config_names_the_field_and_the_value(changes, message):
  with pytest.raises(errors.UserError, match=message):
    dataclasses.replace(TINY, **changes)


def dot_count(jaxpr):
  inner = (j for eqn in jaxpr.eqns for j in jax.extend.core.jaxprs_in_params(eqn.params))
  return sum(eqn.primitive.name == 'dot_general' for eqn in jaxpr.eqns) + sum(map(dot_count, inner))


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_changes_neither_loss_nor_gradients(remat):
  stored = loss_and_grads(TINY)
  again = loss_and_grads(dataclasses.replace(TINY, remat=remat))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), stored, again)


@pytest.mark.parametrize('grad_outside', [False, True])
def test_remat_dots_computes_no_projection_twice_under_vmap(grad_outside):
  p = jax.tree.map(lambda x: x[None], params(TINY))

  def count(remat):
    loss = functools.partial(model.next_token_loss, config=dataclasses.replace(TINY, remat=remat))
    if grad_outside:
      step = jax.grad(lambda p, t: jax.vmap(loss)(p, t).sum())
    else:
      step = jax.vmap(jax.grad(loss))
    return dot_count(jax.make_jaxpr(step)(p, tokens(1, 2, 9)).jaxpr)

  # Again: the scores and the sum of attention; with 'full' the projections that a derivative needs.
  assert count('dots') - count('none') == 2
  assert count('full') - count('none') == 5


def test_bfloat16_is_close_to_float32():
  loss, grads = loss_and_grads(TINY)
  low_loss, low_grads = loss_and_grads(dataclasses.replace(TINY, compute_dtype='bfloat16'))
  assert low_loss.dtype == jnp.float32
  np.testing.assert_allclose(low_loss, loss, rtol=2e-3)
  for exact, low in zip(jax.tree.leaves(grads), jax.tree.leaves(low_grads), strict=True):
    assert low.dtype == jnp.float32
    assert np.linalg.norm(low - exact) < 0.05 * np.linalg.norm(exact)


def test_vmap_over_replicas_inside_shard_map_equals_a_loop():
  replicas = [jax.tree.map(lambda x, s=s: x * s, params(TINY)) for s in (0.8, 1.0, 1.2)]
  batch = tokens(3, 2, 18)
  step = jax.value_and_grad(functools.partial(model.next_token_loss, config=TINY))
  # With one device this partitions nothing, but it does check types that vary over workers.
  mesh = jax.make_mesh((1, 1), ('workers', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  spec = jax.sharding.PartitionSpec('workers')
  together = jax.jit(
    jax.shard_map(jax.vmap(step), mesh=mesh, in_specs=spec, out_specs=spec, axis_names={'workers'})
  )(jax.tree.map(lambda *x: jnp.stack(x), *replicas), batch)
  one = jax.jit(step)
  loop = [one(p, t) for p, t in zip(replicas, batch, strict=True)]
  jax.tree.map(
    lambda a, *b: np.testing.assert_allclose(a, np.stack(b), rtol=1e-4, atol=1e-6),
    together,
    *loop,
  )
