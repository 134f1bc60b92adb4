"""The held-out sequences that an evaluation reads."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from desloc_jax.data import (
  validation_batches,
)
from desloc_jax.errors import UserError
from tests.sources import make_source, ONE, SEQ_LEN, TWO


def read_validation(sources, limit=None):
  """Returns the sequences that validation reads, [sequences, seq_len + 1], without the padding."""
  batches = validation_batches(sources, workers=2, batch_size=4, limit=limit)
  return [row for tokens, mask in batches for row in tokens[mask == 1]]


def test_validation_reads_every_sequence_once_in_order():
  packed = ONE[0][1]
  for workers, batch_size in ((2, 4), (1, 7), (5, 9)):
    rows = []
    for tokens, mask in validation_batches([make_source('a', 45)], workers, batch_size):
      assert tokens.shape == (workers, batch_size, SEQ_LEN + 1) and tokens.dtype == np.int32
      assert mask.shape == (workers, batch_size) and mask.dtype == np.float32
      assert not tokens[mask == 0].any()
      rows.extend(tokens[mask == 1])
    np.testing.assert_array_equal(rows, [packed[i] for i in range(45)])


def test_validation_limit_is_spread_evenly():
  packed = ONE[0][1]
  np.testing.assert_array_equal(read_validation(ONE, limit=5), [packed[i] for i in range(0, 45, 9)])
  assert len(read_validation(ONE, limit=1000)) == 48


def test_validation_can_be_repeated():
  batches = validation_batches(TWO, 2, 4, 10)
  first, second = list(batches), list(batches)
  assert len(first) == 2
  for (tokens, mask), (again, mask_again) in zip(first, second, strict=True):
    np.testing.assert_array_equal(tokens, again)
    np.testing.assert_array_equal(mask, mask_again)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), data=st.data())
@settings(max_examples=50, deadline=None)
def test_validation_mixes_without_repeats(sizes, data):
  weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
  limit = data.draw(st.none() | st.integers(1, 50))
  sources = [
    make_source(f's{i}', size, 1000 * i, weight=weight)
    for i, (size, weight) in enumerate(zip(sizes, weights, strict=True))
  ]
  firsts = [int(row[0]) for row in read_validation(sources, limit=limit)]
  assert len(set(firsts)) == len(firsts)
  possible = min(size * sum(weights) / weight for size, weight in zip(sizes, weights, strict=True))
  assert len(firsts) <= (limit or np.inf)
  if limit is not None and limit <= possible * 0.9:
    assert len(firsts) == limit
  for i, weight in enumerate(weights):
    share = sum(first // 1000 == i for first in firsts)
    assert abs(share - len(firsts) * weight / sum(weights)) <= len(sizes) + 0.01 * len(firsts)


def test_validation_errors():
  with pytest.raises(UserError, match='limit is 0, expected at least 1'):
    validation_batches(ONE, 2, 4, 0)
