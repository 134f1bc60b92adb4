"""The order of training batches, and the batches of validation."""

import collections
import dataclasses
import itertools

import grain
from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from desloc_jax.data import (
  StreamStart,
  TrainingStream,
)
from desloc_jax.errors import UserError
from tests.sources import (
  flatten,
  ids_of,
  make_source,
  make_stream,
  ONE,
  order_of,
  OWN,
  SEQ_LEN,
  TWO,
)


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
@pytest.mark.parametrize('first_step', [0, 40])
def test_processes_together_read_the_whole(sources, first_step):
  """Each process plans a stream of its own, after a restart as well."""
  start = StreamStart(first_step, {'a': 7 * first_step})
  whole = make_stream(sources, start=start)
  processes = [make_stream(sources, start=start, local_workers=w) for w in ((0, 2), (1,))]
  for step in (first_step, first_step + 23):
    rows = [rows for process in processes for rows in process.batch(step)]
    np.testing.assert_array_equal(rows, whole.batch(step)[[0, 2, 1]])
    assert all(process.consumed(step) == whole.consumed(step) for process in processes)


def test_one_source_is_cut_in_blocks():
  """Worker m's i-th sequence of step t is at (t * workers + m) * batch_size + i of the order."""
  assert flatten(ids_of(make_stream(ONE), 10)) == order_of(ONE, 'a', 120)
  start = StreamStart(100, {'a': 13})
  rest = make_stream(ONE, workers=2, batch_size=5, start=start)
  assert flatten(ids_of(rest, 10, 100)) == order_of(ONE, 'a', 113)[13:]


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
  ids = ids_of(stream, 50)
  count = collections.Counter(i.source for i in flatten(ids))
  assert count == stream.consumed(50) == {'a': 450, 'b': 150}
  assert stream.epochs(50) == {'a': 450 / 48, 'b': 150 / 31}
  for worker in range(3):
    count = collections.Counter(i.source for step in ids for i in step[worker])
    assert count == {'a': 150, 'b': 50}


def test_every_global_batch_is_mixed():
  """Although each of the workers draws a single sequence a step, 3 of 4 from `a`."""
  for step in ids_of(make_stream(TWO, workers=4, batch_size=1), 20):
    assert collections.Counter(i.source for (i,) in step) == {'a': 3, 'b': 1}


def test_workers_of_their_own_mixture():
  stream = make_stream(OWN)
  seen = [[i for step in ids_of(stream, 60) for i in step[worker]] for worker in range(3)]
  counts = [collections.Counter(i.source for i in ids) for ids in seen]
  assert counts == [{'a': 120, 'c': 120}, {'b': 120, 'c': 120}, {'a': 120, 'b': 60, 'c': 60}]
  # No two workers share a sequence of an epoch.
  assert len(set(itertools.chain(*seen))) == 3 * 240
  assert stream.consumed(60) == sum(counts, collections.Counter())
  assert stream.epochs(60) == {'a': 240 / 160, 'b': 180 / 121, 'c': 300 / 61}


def test_shares_hold_over_a_long_window():
  weights = (0.7, 0.1, 0.1, 0.05, 0.05)
  sources = [make_source(f's{i}', 50, weight=weight) for i, weight in enumerate(weights)]
  ids = ids_of(make_stream(sources, workers=2, batch_size=25), 40)
  for worker in range(2):
    count = collections.Counter(i.source for step in ids for i in step[worker])
    for i, weight in enumerate(weights):
      assert abs(count[f's{i}'] - 1000 * weight) <= 1


def test_fewer_sequences_than_workers_wrap_around():
  sources = [make_source('a', 2, worker_weights=(1.0, 1.0, 1.0))]
  assert flatten(ids_of(make_stream(sources), 3)) == order_of(sources, 'a', 36)


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
  with pytest.raises(UserError, match='weight .* is 1e-09 of the sum .* at least 1e-07'):
    make_stream([*ONE, make_source('b', 31, weight=1e-9)])
