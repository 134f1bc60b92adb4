"""Text to batches of tokens, the same for a given seed wherever it runs.

  tokenizers           text <-> token ids
  hugging_face, gpt2   those of the Hugging Face library
  named_tokenizers     the tokenizer that a configuration names
  tokenizer_files      what a tokenizer.json says
  corpus_files         which files a path stands for
  documents, records   reading text, JSON, Parquet, Arrow and Hugging Face datasets
  bad_records          counting those that cannot be used
  splits               which documents are held out for validation
  encoding, parallel   documents to token ids, in several processes
  manifest, shards     the format of tokenised data on disk
  sequences            a split as sequences of a fixed length
  sources              opening what a configuration names: text or prepared shards
  mixture, streams     the batches of training: mixed, shuffled and dealt to the workers
  validation           the sequences of an evaluation, and what their losses say

Commands: `python -m desloc_jax prepare` tokenises a corpus into shards,
`python -m desloc_jax tokenizer` trains a tokenizer.
"""

from desloc_jax.data.manifest import Manifest, read_manifest, Shard
from desloc_jax.data.mixture import SequenceId
from desloc_jax.data.named_tokenizers import load_tokenizer
from desloc_jax.data.reading.documents import Document, read_documents
from desloc_jax.data.sequences import PackedSequences
from desloc_jax.data.shards import verify_shards
from desloc_jax.data.sources import fingerprint, open_source, SourceSpec
from desloc_jax.data.splits import is_held_out
from desloc_jax.data.streams import StreamStart, TrainingStream
from desloc_jax.data.tokenizers import Tokenizer
from desloc_jax.data.validation import bits_per_byte, Validation

__all__ = [
  'Document',
  'Manifest',
  'PackedSequences',
  'SequenceId',
  'Shard',
  'SourceSpec',
  'StreamStart',
  'Tokenizer',
  'TrainingStream',
  'Validation',
  'bits_per_byte',
  'fingerprint',
  'is_held_out',
  'load_tokenizer',
  'open_source',
  'read_documents',
  'read_manifest',
  'verify_shards',
]
