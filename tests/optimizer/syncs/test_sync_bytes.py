"""What syncs send: bytes of a worker, read off the program, and numbers that share a byte."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from desloc_jax.optimizer import syncs
from desloc_jax.optimizer.syncs.compressed import bits
from tests.syncing import (
  bits_of,
  EVERY,
  init,
  LIKE,
  make_reduce,
  random_locals,
  sent_bytes,
)


@pytest.mark.parametrize('number_of_bits', [16, 8, 4, 2])
def test_bytes_of_quantised_syncs(number_of_bits):
  size = 2**20
  like = {'w': jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
  scales = 0 if number_of_bits == 16 else 4 * size // 256
  encoded = size * number_of_bits // 8 + scales
  sent = sent_bytes(syncs.quantised(number_of_bits), like)
  assert sent == {'all_to_all': encoded, 'all_gather': encoded // 4}


def test_bytes_of_the_largest_are_a_hundredth():
  size = 2**20
  like = {'w': jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
  sent = sent_bytes(syncs.topk(), like)
  assert sent == {'all_gather': size // 4096 * (64 * 12 // 8 + 64 * 2 // 8 + 4 * 4)}
  assert sum(sent.values()) < 4 * size / 100


@pytest.mark.parametrize('number_of_bits', [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize('count', [1, 7, 64])
def test_packed_numbers_come_out_again(number_of_bits, count):
  numbers = np.random.default_rng(0).integers(0, 2**number_of_bits, (3, count))
  packed = bits.pack(jnp.asarray(numbers), number_of_bits)
  assert packed.dtype == jnp.uint8
  assert packed.shape == (3, bits.packed_bytes(count, number_of_bits))
  assert packed.shape[-1] <= count * number_of_bits / 8 + 2
  np.testing.assert_array_equal(bits.unpack(packed, number_of_bits, count), numbers)


def test_one_worker_and_empty_trees_send_nothing():
  one = jax.tree.map(lambda x: x[:1], random_locals())
  for sync in EVERY.values():
    if sync is not EVERY['exempt']:
      agreed, _ = make_reduce(sync)(one, jax.tree.map(lambda x: x[0] + 1, one), init(sync, LIKE, 1))
      assert bits_of(agreed) == bits_of(jax.tree.map(lambda x: x[0], one))
  sync = syncs.quantised(8)
  assert sent_bytes(sync, {}) == {}
