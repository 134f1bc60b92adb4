"""The data of a run: sources of both splits, the training stream and the validation batches."""

from collections.abc import Iterable, Sequence
import dataclasses
import functools

from ml_collections import config_dict

from desloc_jax import data as data_lib
from desloc_jax.train.config import worker_batch_size

Sources = list[tuple[data_lib.SourceSpec, data_lib.PackedSequences]]


@dataclasses.dataclass(frozen=True)
class Data:
  """What a run reads, checked and ready.

  Attributes:
    tokenizer: that all sources share.
    train: sources of the training split.
    validation: sources of the held-out split.
    stream: training batches by step.
    validation_batches: of tokens and mask, always the same; see `data.validation_batches`.
  """

  tokenizer: data_lib.Tokenizer
  train: Sources
  validation: Sources
  stream: data_lib.TrainingStream
  validation_batches: Iterable

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of all that the data streams depend on besides the config."""
    return data_lib.fingerprint(self.train + self.validation)

  @property
  def tokens_per_byte(self) -> float:
    """Of the held-out text: nats per token / ln 2 * this = bits per byte."""
    sources = [source for _, source in self.validation]
    return sum(s.tokens for s in sources) / sum(s.text_bytes for s in sources)


def load_data(
  config: config_dict.ConfigDict, start: data_lib.StreamStart, local_workers: Sequence[int]
) -> Data:
  """Opens all sources of a configuration.

  Args:
    config: of the run.
    start: where the training stream begins.
    local_workers: the workers whose batches this process reads.

  Raises:
    UserError: a source or the tokenizer cannot be used, or has no data for a split.
  """
  tokenizer = data_lib.load_tokenizer(config.data.tokenizer)
  specs = [data_lib.SourceSpec(name=name, **source) for name, source in config.data.sources.items()]

  def open_split(split: str) -> Sources:
    return [
      (
        spec,
        data_lib.open_source(
          spec.path, tokenizer, split, config.seq_len, config.data.validation_fraction, spec.where
        ),
      )
      for spec in specs
    ]

  train, validation = open_split('train'), open_split('validation')
  return Data(
    tokenizer=tokenizer,
    train=train,
    validation=validation,
    stream=data_lib.TrainingStream(
      train,
      workers=config.workers,
      batch_size=worker_batch_size(config),
      seed=config.seed,
      local_workers=local_workers,
      start=start,
    ),
    validation_batches=data_lib.validation_batches(
      validation,
      config.workers,
      worker_batch_size(config) // config.accumulation,
      config.eval.sequences or None,
    ),
  )
