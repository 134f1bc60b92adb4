"""Sizes of a step, and the steps to profile."""

import pytest

from desloc_jax.errors import UserError
from desloc_jax.options.batch import Batch, batch_of
from desloc_jax.options.profile_steps import parse_steps
from desloc_jax.options.table import default_config


def test_sizes_follow_from_each_other():
  batch = Batch(workers=3, worker_sequences=8, micro_batches=2, seq_len=16)
  assert batch.shape == (3, 2, 4, 17)
  assert batch.sequences == 4
  assert batch.tokens == 3 * 8 * 16


def test_a_batch_of_all_workers_is_shared_out():
  config = default_config()
  config.update(workers=4, batch_size=8, global_batch_size=24)
  assert batch_of(config).worker_sequences == 6
  config.global_batch_size = 0
  assert batch_of(config).worker_sequences == 8


@pytest.mark.parametrize(
  ('text', 'steps'), [('', None), ('7', (7, 7)), ('100-103', (100, 103)), (' 1-1 ', (1, 1))]
)
def test_steps_to_profile(text, steps):
  assert parse_steps(text) == steps


@pytest.mark.parametrize('text', ['0', '5-4', '0-3', 'all', '3-', '1,2', '-1'])
def test_other_forms_of_steps_are_refused(text):
  with pytest.raises(UserError, match='profile.steps is .* expected one step or FIRST-LAST'):
    parse_steps(text)
