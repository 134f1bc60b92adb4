"""The model against NumPy in float64, and what the trainer relies on: causality, memory, vmap."""

import dataclasses
import functools
import math
import os
import pathlib
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from desloc_jax import errors, model
from desloc_jax.model import gpt

TINY = model.GPTConfig(
  vocab_size=61, layers=2, width=32, heads=4, seq_len=24, loss_chunk=20, attention='xla'
)

# The sizes of the paper: (nominal millions, layers, width, heads, millions with the embedding).
# '1B' and '135M' leave their nominal size by more than rounding: see the tolerances of the test.
SIZES = {
  '16M': (16, 4, 256, 4, 16.04),
  '125M': (125, 12, 768, 12, 123.64),
  '135M': (135, 30, 576, 9, 148.49),
  '720M': (720, 12, 2048, 16, 707.19),
  '1B': (1000, 24, 2048, 16, 1311.20),
}


def paper_config(name, **changes):
  _, layers, width, heads, _ = SIZES[name]
  return model.GPTConfig(50_368, layers, width, heads, seq_len=2048, **changes)


def tokens(*shape, seed=0, vocab_size=TINY.vocab_size):
  return jax.random.randint(jax.random.key(seed), shape, 0, vocab_size)


@functools.cache
def params(config):
  """Returns parameters with every scale away from one, so that a dropped scale would show."""
  noise = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x * noise.uniform(0.5, 1.5, x.shape).astype(np.float32),
    jax.jit(functools.partial(model.init_params, config))(jax.random.key(0)),
  )


@functools.cache
def loss_and_grads(config):
  loss = functools.partial(model.next_token_loss, config=config)
  return jax.jit(jax.value_and_grad(loss))(params(TINY), tokens(3, 18))


# --- A reference in float64, written from the formulas and sharing no code with the model.


def reference_norm(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def reference_rope(x_BxLxHxK, base):
  length, dim = x_BxLxHxK.shape[1], x_BxLxHxK.shape[-1]
  angles = np.arange(length)[:, None] * base ** (-np.arange(dim // 2) / (dim // 2))
  x = x_BxLxHxK[..., : dim // 2] + 1j * x_BxLxHxK[..., dim // 2 :]
  x = x * np.exp(1j * angles)[:, None]
  return np.concatenate([x.real, x.imag], -1)


def reference_hidden(p, tokens_BxL, config):
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
  x = p['embedding'][np.asarray(tokens_BxL)]
  batch, length, width = x.shape
  for i in range(config.layers):
    block = jax.tree.map(lambda x, i=i: x[i], p['blocks'])
    h = reference_norm(x, block['attention_norm']['scale']) @ block['qkv']['kernel']
    q, k, v = (part.reshape(batch, length, config.heads, -1) for part in np.split(h, 3, axis=-1))
    if config.qk_norm:
      q = reference_norm(q, block['query_norm']['scale'])
      k = reference_norm(k, block['key_norm']['scale'])
    q, k = reference_rope(q, config.rope_base), reference_rope(k, config.rope_base)
    scores = np.einsum('bqhk,bshk->bhqs', q, k) / math.sqrt(q.shape[-1])
    scores = np.exp(np.where(np.tri(length, dtype=bool), scores, -np.inf))
    weights = scores / scores.sum(-1, keepdims=True)
    h = np.einsum('bhqs,bshk->bqhk', weights, v).reshape(batch, length, width)
    x = x + h @ block['attention_out']['kernel']
    h = reference_norm(x, block['mlp_norm']['scale']) @ block['mlp_up']['kernel']
    x = x + (h / (1 + np.exp(-h))) @ block['mlp_down']['kernel']
  return reference_norm(x, p['final_norm']['scale'])


def reference_losses(hidden_BxLxD, embedding_VxD, targets_BxL):
  """Returns the losses [B, L] and the probabilities less the one-hot targets [B, L, V]."""
  scores = np.asarray(hidden_BxLxD, np.float64) @ np.asarray(embedding_VxD, np.float64).T
  probs = np.exp(scores - scores.max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  one_hot = np.eye(scores.shape[-1])[np.asarray(targets_BxL)]
  return -np.log((probs * one_hot).sum(-1)), probs - one_hot


# --- Network.


@pytest.mark.parametrize('qk_norm', [False, True])
def test_hidden_states_match_the_reference(qk_norm):
  config = dataclasses.replace(TINY, qk_norm=qk_norm)
  batch = tokens(3, 17)
  hidden = jax.jit(model.GPT(config).apply)({'params': params(config)}, batch)
  assert hidden.shape == (3, 17, 32) and hidden.dtype == jnp.float32
  np.testing.assert_allclose(
    hidden, reference_hidden(params(config), batch, config), rtol=1e-3, atol=1e-4
  )


def test_hidden_states_see_no_later_token():
  batch = tokens(2, 24)
  changed = batch.at[:, 13].set((batch[:, 13] + 1) % TINY.vocab_size)
  apply = jax.jit(lambda t: model.GPT(TINY).apply({'params': params(TINY)}, t))
  before, after = apply(batch), apply(changed)
  np.testing.assert_array_equal(before[:, :13], after[:, :13])
  assert (np.abs(before - after)[:, 13:].max(-1) > 0).all()  # All later positions see it.


def test_rope_scores_depend_on_distance_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
  tables = gpt.rope_tables(32, 16, 10_000.0)
  q, k = (gpt.apply_rope(jnp.tile(x, (1, 32, 1, 1)), tables)[0, :, 0] for x in (q, k))
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
    ({'qk_norm': 1}, 'qk_norm is 1'),
    ({'compute_dtype': 'bfloat'}, "compute_dtype 'bfloat' .* 'bfloat16'"),
    ({'remat': 'dot'}, "remat 'dot' .* 'dots'"),
    ({'attention': 'flash'}, "attention 'flash' .* auto, cudnn, xla"),
    ({'attention': 'cudnn'}, "attention is 'cudnn' with compute_dtype 'float32'"),
  ],
)
def test_config_names_the_field_and_the_value(changes, message):
  with pytest.raises(errors.UserError, match=message):
    dataclasses.replace(TINY, **changes)


def test_attention_follows_the_backend(monkeypatch):
  base = dataclasses.replace(TINY, compute_dtype='bfloat16', attention='auto')
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert gpt.attention_implementation(base) == 'cudnn'
  assert gpt.attention_implementation(dataclasses.replace(base, attention='xla')) == 'xla'
  assert gpt.attention_implementation(dataclasses.replace(base, compute_dtype='float32')) == 'xla'
  assert gpt.attention_implementation(dataclasses.replace(base, heads=8)) == 'xla'  # 4 a head.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  assert gpt.attention_implementation(base) == 'xla'
  with pytest.raises(errors.UserError, match='needs a GPU'):
    gpt.attention_implementation(dataclasses.replace(base, attention='cudnn'))


# --- Loss.


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


# --- Variants that must agree.


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


SPLIT = """
import functools, re
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
from desloc_jax import model, over_workers

config = model.GPTConfig(128, 2, 64, 2, seq_len=32, loss_chunk=64)
of_worker = jax.value_and_grad(functools.partial(model.next_token_loss, config=config))
step = jax.vmap(of_worker)
params = jax.vmap(functools.partial(model.init_params, config))(jax.random.split(jax.random.key(0)))
tokens = jax.random.randint(jax.random.key(1), (2, 8, 33), 0, 128)
mesh = jax.make_mesh((2, 2), ('workers', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
split = jax.jit(over_workers(of_worker, mesh, in_axes=(0, 0), out_axes=0))

def last_axis(x):
  middle = [None] * (x.ndim - 2)
  return jax.device_put(x, NamedSharding(mesh, P('workers', *middle, 'fsdp')))

args = jax.tree.map(last_axis, params), jax.device_put(tokens, NamedSharding(mesh, P('workers', 'fsdp')))
compiled = split.lower(*args).compile()
for a, b in zip(*map(jax.tree.leaves, (compiled(*args), jax.jit(step)(params, tokens))), strict=True):
  np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
for what in 'all-gather', 'all-reduce', 'reduce-scatter':
  print(what, *re.findall(rf'= f32(\\S+?){{\\S* {what}\\(', compiled.as_text()))
"""


def test_splitting_over_fsdp_gathers_parameters_and_not_activations():
  # In a process of its own, because the number of devices is fixed when JAX starts.
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
  }
  root = pathlib.Path(model.__file__).parents[2]
  run = subprocess.run(
    [sys.executable, '-c', SPLIT], env=env, cwd=root, capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr
  gathered, reduced, scattered = (line.split()[1:] for line in run.stdout.splitlines())
  weights = {'[128,64]', '[64,192]', '[64,64]', '[64,256]', '[256,64]'}
  assert weights <= set(gathered)
  # Of each gradient a device has its half of the sum; sums of whole ones are of norms only.
  assert {'[64,64]', '[32,192]', '[32,64]', '[32,256]', '[128,64]'} <= set(scattered)
  assert not weights & set(reduced)
  # Neither are what a layer computes.
  assert not any(',32,192]' in shape or ',32,256]' in shape for shape in gathered + reduced)


# --- Initialisation and size.


def test_initial_loss_is_near_that_of_a_uniform_guess():
  config = dataclasses.replace(paper_config('16M'), layers=2)
  p = jax.jit(functools.partial(model.init_params, config))(jax.random.key(0))
  batch = tokens(2, 33, vocab_size=config.vocab_size)
  loss = jax.jit(functools.partial(model.next_token_loss, config=config))(p, batch)
  assert abs(loss - math.log(config.vocab_size)) < 0.3


def test_initial_scales():
  p = model.init_params(dataclasses.replace(TINY, layers=8, width=64), jax.random.key(0))
  for name, stddev in (
    ('qkv', 0.02),
    ('mlp_up', 0.02),
    ('attention_out', 0.005),
    ('mlp_down', 0.005),
  ):
    np.testing.assert_allclose(p['blocks'][name]['kernel'].std(), stddev, rtol=0.03)
  np.testing.assert_allclose(p['embedding'].std(), 0.02, rtol=0.05)
  first, second = p['blocks']['qkv']['kernel'][:2]
  assert not np.allclose(first, second)  # Each layer has a key of its own.


@pytest.mark.parametrize('name', SIZES)
@pytest.mark.parametrize('qk_norm', [False, True])
def test_parameter_count_is_that_of_the_tree(name, qk_norm):
  config = paper_config(name, qk_norm=qk_norm)
  tree = jax.eval_shape(functools.partial(model.init_params, config), jax.random.key(0))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
  count = model.parameter_count(config)
  assert count == sum(leaf.size for leaf in jax.tree.leaves(tree))
  nominal, _, _, _, millions = SIZES[name]
  assert count / 1e6 == pytest.approx(millions, rel=1e-3)
  # The embedding is included. 135M is named after a model with fewer key heads and a gated MLP,
  # and 1B is what others call 1.3B.
  tolerance = {'135M': 0.11, '1B': 0.32}.get(name, 0.02)
  assert count / 1e6 == pytest.approx(nominal, rel=tolerance)


def test_flops_per_token_by_hand():
  config = model.GPTConfig(vocab_size=10, layers=2, width=4, heads=2, seq_len=8)
  # 6 * (2 layers * 12 * 4^2 + 10 * 4) + 12 * 2 * 4 * 8
  assert model.flops_per_token(config) == 6 * 424 + 768


def test_loss_falls_on_a_repeated_batch():
  batch = tokens(4, 25)
  p, optimizer = model.init_params(TINY, jax.random.key(1)), optax.adam(1e-2)

  @jax.jit
  def step(p, state):
    loss, grads = jax.value_and_grad(model.next_token_loss)(p, batch, TINY)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(p, updates), state, loss

  state = optimizer.init(p)
  losses = []
  for _ in range(60):
    p, state, loss = step(p, state)
    losses.append(loss)
  assert losses[0] > 4 and losses[-1] < 0.5
