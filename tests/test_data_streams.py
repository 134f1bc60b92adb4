"""The order of training batches, and the batches of validation."""

import collections
import dataclasses
import itertools

import grain
from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from desloc_jax.data import PackedSequences, SourceSpec, TrainingStream, validation_batches
from desloc_jax.errors import UserError

SEQ_LEN = 3


def make_source(name, sequences, first_token=0, **options):
  tokens = np.arange(first_token, first_token + sequences * SEQ_LEN + 1, dtype=np.uint16)
  packed = PackedSequences(
    [tokens],
    label=name,
    names=[name],
    seq_len=SEQ_LEN,
    vocab_size=2**16,
    documents=1,
    text_bytes=1,
    fingerprint=name,
  )
  return SourceSpec(name, name, **options), packed


ONE = [make_source('a', 48)]
TWO = [make_source('a', 48, weight=3.0), make_source('b', 31, 1000)]
OWN = [
  make_source('a', 160, worker_weights=(1.0, 0.0, 2.0)),
  make_source('b', 121, 1000, worker_weights=(0.0, 1.0, 1.0)),
  make_source('c', 61, 2000),
]


def make_stream(sources, **options):
  return TrainingStream(sources, **dict(workers=3, batch_size=4, seed=5) | options)


def ids_of(stream, steps):
  """Returns [steps][workers][batch_size] sequence ids."""
  return [stream.sequence_ids(step) for step in range(steps)]


def flatten(ids):
  return [i for step in ids for row in step for i in row]


def test_packed_sequences_are_a_grain_source():
  packed = ONE[0][1]
  assert isinstance(packed, grain.sources.RandomAccessDataSource)
  np.testing.assert_array_equal(list(grain.MapDataset.source(packed))[2], packed[2])


@pytest.mark.parametrize('sources', [ONE, TWO, OWN])
def test_batches_read_what_the_ids_say(sources):
  stream = make_stream(sources)
  packed = {spec.name: sequences for spec, sequences in sources}
  batch = stream.batch(7)
  assert batch.dtype == np.int32 and batch.shape == (3, 4, SEQ_LEN + 1)
  for row, ids in zip(batch, stream.sequence_ids(7), strict=True):
    for tokens, (source, _, index) in zip(row, ids, strict=True):
      np.testing.assert_array_equal(tokens, packed[source][index])


@pytest.mark.parametrize('sources', [ONE, TWO, OWN])
def test_random_access_iteration_and_threads_agree(sources):
  expected = [make_stream(sources).batch(step) for step in range(25)]
  for start, prefetch, threads in ((0, 2, 1), (20, 0, 1), (13, 5, 4)):
    iterator = make_stream(sources).iterator(start, prefetch, threads)
    np.testing.assert_array_equal(list(itertools.islice(iterator, 25 - start)), expected[start:])


@pytest.mark.parametrize('sources', [ONE, TWO, OWN])
def test_local_workers_are_rows_of_all(sources):
  everything = make_stream(sources)
  for local in ((0,), (2,), (2, 1)):
    part = make_stream(sources, local_workers=local)
    for step in (0, 9):
      np.testing.assert_array_equal(part.batch(step), everything.batch(step)[list(local)])


@pytest.mark.parametrize('sources', [ONE, TWO, OWN])
def test_first_sequence_goes_on(sources):
  whole = make_stream(sources)
  rest = make_stream(sources, first_sequence=whole.position(5))
  assert rest.position(2) == whole.position(7) == 7 * 3 * 4
  np.testing.assert_array_equal(rest.batch(2), whole.batch(7))
  assert rest.epochs(2) == whole.epochs(7)


def test_other_worker_count_goes_on_in_the_same_order():
  whole = flatten(ids_of(make_stream(TWO), 10))
  rest = make_stream(TWO, workers=2, batch_size=3, first_sequence=12)
  assert flatten(ids_of(rest, 18)) == whole[12:]


@given(
  sequences=st.integers(1, 60),
  workers=st.integers(1, 4),
  batch_size=st.integers(1, 5),
  seed=st.integers(0, 2**40),
)
@settings(max_examples=50, deadline=None)
def test_epochs_are_permutations(sequences, workers, batch_size, seed):
  stream = TrainingStream(
    [make_source('a', sequences)], workers=workers, batch_size=batch_size, seed=seed
  )
  ids = flatten(ids_of(stream, 2 * sequences // (workers * batch_size) + 1))
  for epoch in range(2):
    part = ids[epoch * sequences : (epoch + 1) * sequences]
    assert {i.epoch for i in part} == {epoch}
    assert sorted(i.sequence for i in part) == list(range(sequences))


def test_order_depends_on_epoch_seed_and_source():
  twins = [make_source('a', 48), make_source('b', 48)]
  ids = flatten(ids_of(make_stream(twins), 16))
  orders = {}
  for source, epoch, sequence in ids:
    orders.setdefault((source, epoch), []).append(sequence)
  other_seed = flatten(ids_of(make_stream(twins, seed=6), 8))
  orders['seed'] = [i.sequence for i in other_seed if i.source == 'a']
  orders['sorted'] = list(range(48))
  assert len(orders) == 6
  for one, other in itertools.combinations(orders.values(), 2):
    assert sorted(one) == sorted(other) and one != other


def test_mixture_has_the_proportions():
  stream = make_stream(TWO)
  count = collections.Counter(i.source for i in flatten(ids_of(stream, 50)))
  assert count == {'a': 450, 'b': 150}
  epochs = stream.epochs(50)
  assert epochs['a'] == pytest.approx(450 / 48) and epochs['b'] == pytest.approx(150 / 31)


def test_workers_of_their_own_mixture():
  stream = make_stream(OWN)
  seen = [[i for step in ids_of(stream, 60) for i in step[worker]] for worker in range(3)]
  counts = [collections.Counter(i.source for i in ids) for ids in seen]
  assert counts == [{'a': 120, 'c': 120}, {'b': 120, 'c': 120}, {'a': 120, 'b': 60, 'c': 60}]
  # No two workers ever share a sequence, and together they read all of them.
  sets = [{(i.source, i.sequence) for i in ids} for ids in seen]
  assert sum(map(len, sets)) == len(set.union(*sets)) == 160 + 121 + 61
  for ids in seen:
    assert len(set(ids)) == len(ids)
  total = sum(counts, collections.Counter())
  for spec, packed in OWN:
    assert stream.epochs(60)[spec.name] == pytest.approx(total[spec.name] / len(packed))


def test_source_of_weight_zero_is_never_read():
  sources = [make_source('a', 48), make_source('b', 31, weight=0.0)]
  assert {i.source for i in flatten(ids_of(make_stream(sources), 20))} == {'a'}
  assert make_stream(sources).epochs(20)['b'] == 0


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(weight=-1.0), "'a': weight has the value -1.0"),
    (dict(weight=float('nan')), "'a': weight has the value nan"),
    (dict(worker_weights=(1.0, float('inf'), 1.0)), "'a': worker_weights has the value inf"),
    (dict(worker_weights=(1.0, 2.0)), "'a': worker_weights has 2 values, .* 3 workers"),
    (dict(worker_weights=(1.0, 0.0, 1.0)), r'Worker 1 has weight 0 for every source \(a\)'),
    (dict(weight=0.0), r'Worker 0 has weight 0'),
  ],
)
def test_bad_weights(change, message):
  spec, packed = ONE[0]
  with pytest.raises(UserError, match=message):
    make_stream([(dataclasses.replace(spec, **change), packed)])


def test_bad_arguments():
  with pytest.raises(UserError, match='local_workers is .* expected some of 0..2'):
    make_stream(ONE, local_workers=(3,))
  with pytest.raises(UserError, match='batch_size is 0, expected at least 1'):
    make_stream(ONE, batch_size=0)
  with pytest.raises(UserError, match='no source'):
    make_stream([])
  with pytest.raises(UserError, match="'a' is used twice"):
    make_stream([*ONE, *ONE])
  with pytest.raises(UserError, match="'a' has 2 sequences, .* 3 workers"):
    make_stream([make_source('a', 2, worker_weights=(1.0, 1.0, 1.0))])


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
