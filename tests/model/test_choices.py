"""What a model does otherwise on another platform."""

import dataclasses

import jax
import numpy as np
import pytest

from desloc_jax import errors, model
from desloc_jax.model.choices import attention_implementation, unrolls
from tests.references.gpt_reference import params, TINY, tokens


def test_attention_follows_the_platform(monkeypatch):
  def chosen(**changes):
    config = dataclasses.replace(
      TINY, **({'compute_dtype': 'bfloat16', 'attention': 'auto'} | changes)
    )
    return attention_implementation(config)

  assert chosen(platform='gpu') == 'cudnn'
  assert chosen(platform='gpu', attention='xla') == 'xla'
  assert chosen(platform='gpu', compute_dtype='float32') == 'xla'
  assert chosen(platform='gpu', heads=8) == 'xla'  # 4 a head.
  assert chosen(platform='tpu') == 'xla'
  assert chosen(platform='cpu') == 'blocks'
  with pytest.raises(errors.UserError, match="'cpu': it needs a GPU"):
    chosen(platform='cpu', attention='cudnn')
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert chosen() == 'cudnn'
  assert chosen(platform='tpu') == 'xla'  # As where a step is compiled for another machine.


def test_a_few_stored_blocks_are_written_out_on_cpus_only():
  chosen = lambda **changes: unrolls(dataclasses.replace(TINY, **changes))
  assert chosen(platform='cpu')
  assert not chosen(platform='tpu') and not chosen(platform='gpu')
  assert not chosen(platform='cpu', layers=24)
  assert not chosen(platform='cpu', remat='full')


def test_a_model_for_cpus_has_the_gradients_of_one_for_accelerators():
  changes = {'qk_norm': True, 'kv_heads': 2, 'document_end': 3, 'attention': 'auto'}
  config = dataclasses.replace(TINY, **changes)
  weights, batch = params(config), tokens(2, 25)

  def computed(platform):
    loss = lambda p: model.next_token_loss(p, batch, dataclasses.replace(config, platform=platform))
    lowered = jax.jit(jax.value_and_grad(loss)).lower(weights)
    return lowered.as_text().count('stablehlo.while'), lowered.compile()(weights)

  (their_loops, theirs), (our_loops, ours) = computed('tpu'), computed('cpu')
  assert their_loops == our_loops + 2  # Forward and backward.
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())
