"""The order of training batches, and the batches of validation."""

import collections
import dataclasses
import itertools
import json

import grain
from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from desloc_jax.data import (
  mixture,
  PackedSequences,
  SourceSpec,
  StreamStart,
  TrainingStream,
  validation_batches,
)
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


def ids_of(stream, steps, first_step=0):
  """Returns [steps][workers][batch_size] sequence ids."""
  return [stream.sequence_ids(first_step + step) for step in range(steps)]


def flatten(ids):
  return [i for step in ids for row in step for i in row]


def of_source(ids, name):
  return [i for i in ids if i.source == name]


def order_of(sources, name, count, seed=5):
  """Returns the first ids of a source's endless order: those that grain shuffles to, no mixing."""
  index = [spec.name for spec, _ in sources].index(name)
  length = len(sources[index][1])
  derived = int(np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1)[0])
  order = mixture.SequenceIds(name, length).shuffle(seed=derived).repeat()
  return [order[position] for position in range(count)]


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


@pytest.mark.parametrize('sources', [ONE, TWO, OWN])
def test_resume_equals_uninterrupted(sources):
  """A stream that keeps its start goes on as if it had never stopped."""
  start = StreamStart(30, {spec.name: 17 for spec, _ in sources})
  whole = list(itertools.islice(make_stream(sources, start=start).iterator(30), 20))
  again = make_stream(sources, start=start)
  np.testing.assert_array_equal(list(itertools.islice(again.iterator(41), 9)), whole[11:])
  np.testing.assert_array_equal(again.batch(49), whole[19])


@pytest.mark.parametrize('sources', [ONE, TWO, OWN])
def test_start_survives_json(sources):
  start = StreamStart(7, make_stream(sources).consumed(7))
  again = StreamStart(**json.loads(json.dumps(dataclasses.asdict(start))))
  assert again == start and list(again.consumed) == [spec.name for spec, _ in sources]
  assert sum(again.consumed.values()) == 7 * 3 * 4
  stream = make_stream(sources, start=again)
  assert stream.consumed(7) == start.consumed
  np.testing.assert_array_equal(stream.batch(8), make_stream(sources, start=start).batch(8))
  assert StreamStart(**json.loads('{}')) == StreamStart()


@st.composite
def mixtures(draw, names, workers, own):
  """Returns the weights of each source, as options of its spec; of the first, all are positive."""
  positive = st.sampled_from([0.1, 1 / 3, 1.0, 2.0, 7.5])
  options = []
  for name in names:
    weight = positive if name == names[0] else st.just(0.0) | positive
    if own:
      weights = st.lists(weight, min_size=workers, max_size=workers)
      options.append(dict(worker_weights=tuple(draw(weights))))
    else:
      options.append(dict(weight=draw(weight)))
  return options


@pytest.mark.parametrize('names, own', [('a', False), ('abc', False), ('ab', True), ('abc', True)])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_restarts_read_the_orders_through(names, own, data):
  """Segments of any workers, batches and mixtures read each order once, without a gap."""
  sizes = [data.draw(st.integers(1, 40)) for _ in names]
  segments = data.draw(
    st.lists(
      st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=3
    )
  )
  start, ids = StreamStart(), []
  for workers, batch_size, steps in segments:
    options = data.draw(mixtures(names, workers, own))
    sources = [
      make_source(name, size, **option)
      for name, size, option in zip(names, sizes, options, strict=True)
    ]
    stream = make_stream(sources, workers=workers, batch_size=batch_size, start=start)
    part = ids_of(stream, steps, start.step)
    assert [np.shape(rows)[:2] for rows in part] == [(workers, batch_size)] * steps
    ids += flatten(part)
    start = StreamStart(start.step + steps, stream.consumed(start.step + steps))
  for name, size in zip(names, sizes, strict=True):
    read = of_source(ids, name)
    assert read == order_of(sources, name, start.consumed.get(name, 0))
    epochs = collections.Counter(i.epoch for i in read)
    assert len(set(read)) == len(read)
    assert all(count == size for epoch, count in epochs.items() if epoch < max(epochs))


@given(
  weights=st.lists(st.integers(0, 700), min_size=1, max_size=5).filter(any),
  index=st.integers(0, 5000),
)
@settings(max_examples=60, deadline=None)
def test_draws_before_counts_the_mix_of_grain(weights, index):
  weights = mixture.integer_weights(np.array(weights, np.float64))
  ids = mixture.mix([mixture.SequenceIds(str(i), 10**6) for i in range(len(weights))], weights)
  count = collections.Counter(ids[i].source for i in range(index))
  expected = [count[str(i)] for i in range(len(weights))]
  assert mixture.draws_before(np.array(index), weights).tolist() == expected
  # The pattern repeats after the sum of the weights, however far away.
  far = index + weights.sum() * 10**9
  draws = mixture.draws_before(far, weights) - weights * 10**9
  assert draws.tolist() == expected


def test_far_steps_are_random_access():
  stream = make_stream(OWN)
  step = 10**12
  assert sum(stream.consumed(step).values()) == step * 3 * 4
  assert stream.consumed(step + 1) == {
    name: count + len(of_source(flatten(ids_of(stream, 1, step)), name))
    for name, count in stream.consumed(step).items()
  }


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


@pytest.mark.parametrize(
  'start, message',
  [
    (StreamStart(-1), 'start.step is -1, expected at least 0'),
    (StreamStart(0, {'a': -2}), r"start.consumed\['a'\] is -2, expected at least 0"),
    (StreamStart(0, {'bb': 2}), "start.consumed: source 'bb' is unknown.* 'b'. Valid: a, b"),
  ],
)
def test_bad_start(start, message):
  with pytest.raises(UserError, match=message):
    make_stream(TWO, start=start)


@pytest.mark.parametrize('method', ['batch', 'iterator', 'sequence_ids', 'consumed', 'epochs'])
def test_no_step_before_the_start(method):
  stream = make_stream(TWO, start=StreamStart(5))
  with pytest.raises(UserError, match='step is 4, expected at least 5'):
    getattr(stream, method)(4)


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
