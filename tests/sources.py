"""Small sources whose tokens say where they are from, and streams of them."""

import numpy as np

from desloc_jax.data import mixture, PackedSequences, SourceSpec, TrainingStream

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
