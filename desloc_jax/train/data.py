"""The data of a run: sources of both splits, the training stream and the validation batches."""

from collections.abc import Sequence
import dataclasses
import functools

from absl import logging
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
    held_out: the sequences of an evaluation, always the same.
  """

  tokenizer: data_lib.Tokenizer
  train: Sources
  validation: Sources
  stream: data_lib.TrainingStream
  held_out: data_lib.Validation

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of all that the data streams depend on besides the config."""
    return data_lib.fingerprint(self.train + self.validation)

  def warn_of_epochs(self, stop: int) -> None:
    """Says which sources are read more than once by the end of step `stop`."""
    again = {name: count for name, count in self.stream.epochs(stop).items() if count > 1}
    if again:
      logging.warning(
        'Training to step %d reads %s.',
        stop,
        ', '.join(f'source {name} {count:.2f} times' for name, count in again.items()),
      )


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
  tokenizer = data_lib.load_tokenizer(config.data.tokenizer, config.data.end_of_document)
  for note in tokenizer.notes:
    logging.warning('%s: %s.', config.data.tokenizer, note)
  specs = [data_lib.SourceSpec(name=name, **source) for name, source in config.data.sources.items()]

  def open_split(split: str) -> Sources:
    return [
      (
        spec,
        data_lib.open_source(
          spec.path,
          tokenizer,
          split,
          config.seq_len,
          config.data.validation_fraction,
          spec.where,
          on_bad=config.data.on_bad,
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
    held_out=data_lib.Validation(validation, tokenizer, config.eval.sequences or None),
  )
