"""Streams that go on where others ended."""

import collections
import dataclasses
import itertools
import json

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from desloc_jax.data import (
  mixture,
  StreamStart,
)
from desloc_jax.errors import UserError
from tests.sources import (
  flatten,
  ids_of,
  make_source,
  make_stream,
  of_source,
  ONE,
  order_of,
  OWN,
  TWO,
)


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
