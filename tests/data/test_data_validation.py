"""What an evaluation reads of each source, and what its losses say."""

import fractions
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from desloc_jax.data import (
  bits_per_byte,
  gpt2,
  load_tokenizer,
  open_source,
  SourceSpec,
  StreamStart,
  Validation,
)
from desloc_jax.data.validation import share_out, spread
from desloc_jax.errors import UserError
from desloc_jax.train.setup.open_data import load_data
from tests.runs import small_config
from tests.sources import make_source, ONE, SEQ_LEN, TWO

BYTES = load_tokenizer('bytes')


def chosen(sources, limit=None):
  """Returns source name -> indices that are evaluated."""
  samples = Validation(sources, BYTES, limit).samples
  return {sample.name: sample.indices.tolist() for sample in samples}


def test_all_means_all_whatever_the_weights():
  sources = [make_source('a', 324, weight=9.0), make_source('b', 181, 1000)]
  assert chosen(sources) == {'a': list(range(324)), 'b': list(range(181))}
  assert chosen(sources, 505) == chosen(sources, 10**6) == chosen(sources)


def test_a_sample_is_spread_over_each_source_in_proportion():
  sources = [make_source('big', 20_000, weight=0.9), make_source('small', 60, weight=0.1)]
  found = chosen(sources, 256)
  assert {name: len(indices) for name, indices in found.items()} == {'big': 230, 'small': 26}
  for name, size in (('big', 20_000), ('small', 60)):
    steps = np.diff([-1, *found[name], size])
    assert steps.min() >= 1 and steps.max() <= math.ceil(1.01 * size / len(found[name]))
  # A source that has too few gives its place to the other; each gets one at least.
  assert len(chosen(sources, 2000)['small']) == 60 and len(chosen(sources, 2000)['big']) == 1940
  assert [len(indices) for indices in chosen(sources, 1).values()] == [1, 1]
  assert list(chosen([sources[0], make_source('none', 5, weight=0.0)], 8)) == ['big']


@given(st.integers(1, 300), st.data())
@settings(deadline=None)
def test_shares(limit, data):
  sizes = np.array(data.draw(st.lists(st.integers(1, 100), min_size=1, max_size=5)))
  weights = np.array([data.draw(st.floats(0.01, 10)) for _ in sizes])
  counts = share_out(limit, sizes, weights / weights.sum())
  assert counts.sum() == min(max(limit, len(sizes)), sizes.sum())
  assert (counts >= 1).all() and (counts <= sizes).all()
  free = (counts > 1) & (counts < sizes)
  for i in np.flatnonzero(free):  # As many for each weight, to one sequence.
    for j in np.flatnonzero(free):
      assert (counts[i] - 1) / weights[i] <= (counts[j] + 1) / weights[j] * (1 + 1e-9)


@given(size=st.integers(1, 10**12), data=st.data())
def test_a_spread_is_of_the_middles(size, data):
  count = data.draw(st.integers(1, min(size, 1000)))
  middles = [fractions.Fraction(2 * k + 1, 2) * size / count for k in range(count)]
  assert spread(size, count).tolist() == [math.floor(middle) for middle in middles]


@pytest.mark.parametrize('workers, batch_size', [(2, 4), (1, 7), (5, 9)])
def test_batches_hold_each_chosen_sequence_once(workers, batch_size):
  validation = Validation(TWO, BYTES, 20)
  batches = list(validation.batches(workers, batch_size))
  assert all(tokens.shape == (workers, batch_size, SEQ_LEN + 1) for tokens in batches)
  assert {tokens.dtype for tokens in batches} == {np.dtype(np.int32)}
  rows = np.concatenate(batches).reshape(-1, SEQ_LEN + 1)
  expected = [s.packed[i] for s in validation.samples for i in s.indices.tolist()]
  np.testing.assert_array_equal(rows[:20], expected)
  assert not rows[20:].any() and len(rows) - 20 < workers * batch_size
  again = list(validation.batches(workers, batch_size))
  np.testing.assert_array_equal(again, batches)
  # A loss for each row; those of what fills the last batch do not count.
  losses = [tokens[..., 0].astype(np.float32) for tokens in batches]
  losses[-1].reshape(-1)[20 - len(rows) :] = np.nan
  by_source = validation.by_source(losses)
  for sample in validation.samples:
    firsts = [int(sample.packed[i][0]) for i in sample.indices.tolist()]
    assert by_source[sample.name] == np.mean(firsts)


@pytest.fixture(scope='module')
def prose_and_code(tmp_path_factory):
  """Two texts of different bytes a token, documents of very different length."""
  folder = tmp_path_factory.mktemp('texts')
  rng = np.random.default_rng(0)
  for name, words in (
    ('prose', ['the union', 'congress,', 'né', '日本']),
    ('code', '{ }; 0 x'.split()),
  ):
    (folder / name).mkdir()
    for i in range(60):
      text = ' '.join(rng.choice(words, int(rng.integers(1, 120))))
      (folder / name / f'{i:02}.txt').write_text(text)
  return folder


@pytest.mark.parametrize('limit', [None, 40])
@pytest.mark.parametrize('name', ['bytes', 'gpt2'])
def test_bits_per_byte_are_those_of_what_was_evaluated(prose_and_code, name, limit):
  """Against a sum over each evaluated token, in float64."""
  tokenizer = load_tokenizer(name)
  sources = [
    (SourceSpec(each, str(prose_and_code / each), weight=weight),
     open_source(str(prose_and_code / each), tokenizer, 'validation', 8, 0.5))
    for each, weight in (('prose', 3.0), ('code', 1.0))
  ]  # fmt: skip
  validation = Validation(sources, tokenizer, limit)
  spell = {i: text for text, i in gpt2.parse_ranks(gpt2.read_ranks_file()).items()}
  if name == 'bytes':
    spell = {i: bytes([i]) for i in range(256)}
  rng = np.random.default_rng(1)
  nats, size, losses = 0.0, 0.0, {}
  for (spec, packed), weight in zip(sources, (0.75, 0.25), strict=True):
    sample = next(s for s in validation.samples if s.name == spec.name)
    each = rng.uniform(1, 5, (len(sample.indices), 8))  # Of each token.
    texts = [spell.get(t, b'') for i in sample.indices.tolist() for t in packed[i][1:].tolist()]
    losses[spec.name] = each.mean()
    assert bits_per_byte(each.mean(), sample.bytes_per_token) == pytest.approx(
      each.sum() / math.log(2) / len(b''.join(texts)), rel=1e-12
    )
    nats += weight * each.mean()
    size += weight * len(b''.join(texts)) / each.size
  assert validation.of_mixture(losses) == pytest.approx(nats, rel=1e-12)
  got = bits_per_byte(validation.of_mixture(losses), validation.bytes_per_token)
  assert got == pytest.approx(nats / math.log(2) / size, rel=1e-12)


def test_the_sample_knows_neither_the_workers_nor_their_weights(prose_and_code):
  def sample(**options):
    config = small_config(prose_and_code / 'prose', **{'data.validation_fraction': 0.5} | options)
    with config.unlocked():
      config.data.sources.code = config.data.sources.text.copy_and_resolve_references()
      config.data.sources.code.path = str(prose_and_code / 'code')
      for name, share in (('text', (1.0, 0.0)), ('code', (0.0, 5.0))):
        if config.workers == 2:
          config.data.sources[name].worker_weights = share
    held_out = load_data(config, StreamStart(), range(config.workers)).held_out
    return {s.name: (s.weight, s.indices.tolist()) for s in held_out.samples}

  alone = sample(workers=1)
  assert alone == sample(workers=2) == sample(workers=7, batch_size=3)
  assert alone['text'][0] == 0.5 and len(alone['text'][1]) == 8


def test_validation_errors():
  with pytest.raises(UserError, match='limit is 0, expected at least 1'):
    Validation(ONE, BYTES, 0)
  with pytest.raises(UserError, match='batch_size is 0'):
    list(Validation(ONE, BYTES).batches(1, 0))


def test_a_text_of_no_bytes_has_no_bits_per_byte():
  assert bits_per_byte(1.0, 0.0) == math.inf
