"""The data of a run: sources of both splits, the training stream and the validation batches."""

from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib

from absl import logging
from ml_collections import config_dict

from desloc_jax import data as data_lib
from desloc_jax.data.manifest import MANIFEST
from desloc_jax.data.reading.corpus_files import read_below
from desloc_jax.errors import UserError
from desloc_jax.hosts.peers import peers
from desloc_jax.options.batch import batch_of
from desloc_jax.paths import local_path

Sources = list[tuple[data_lib.SourceSpec, data_lib.PackedSequences]]


@dataclasses.dataclass(frozen=True)
class Texts:
  """The sources of a run.

  Attributes:
    tokenizer: that all sources share.
    train: sources of the training split.
    validation: sources of the held-out split.
  """

  tokenizer: data_lib.Tokenizer
  train: Sources
  validation: Sources

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of all that the data streams depend on besides the config."""
    return data_lib.fingerprint(self.train + self.validation)

  @functools.cached_property
  def contents(self) -> dict[str, list[str]]:
    """Source name -> hashes of its training and its held-out text, tokenized; no path is in it."""
    return {
      spec.name: [train.fingerprint, validation.fingerprint]
      for (spec, train), (_, validation) in zip(self.train, self.validation, strict=True)
    }


@dataclasses.dataclass(frozen=True)
class Data(Texts):
  """What a run reads, checked and ready.

  Attributes:
    stream: training batches by step.
    held_out: the sequences of an evaluation, always the same.
  """

  stream: data_lib.TrainingStream
  held_out: data_lib.Validation

  def warn_of_epochs(self, stop: int) -> None:
    """Says which sources are read more than once by the end of step `stop`."""
    again = {name: count for name, count in self.stream.epochs(stop).items() if count > 1}
    if again:
      logging.warning(
        'Training to step %d reads %s.',
        stop,
        ', '.join(f'source {name} {count:.2f} times' for name, count in again.items()),
      )


def open_texts(config: config_dict.ConfigDict) -> Texts:
  """Opens all sources of a configuration.

  Raises:
    UserError: a source or the tokenizer cannot be used, or has no data for a split.
  """
  tokenizer = data_lib.load_tokenizer(
    local_path(config.data.tokenizer, 'data.tokenizer'), config.data.end_of_document
  )
  for note in tokenizer.notes:
    logging.warning('%s: %s.', config.data.tokenizer, note)
  specs = [data_lib.SourceSpec(name=name, **source) for name, source in config.data.sources.items()]

  def open_split(split: str) -> Sources:
    return [
      (
        spec,
        data_lib.open_source(
          local_path(spec.path, f'data.sources.{spec.name}.path'),
          tokenizer,
          split,
          config.seq_len,
          config.data.validation_fraction,
          spec.where,
          verify=False,
          on_bad=config.data.on_bad,
        ),
      )
      for spec in specs
    ]

  texts = Texts(tokenizer, open_split('train'), open_split('validation'))
  if config.data.verify:
    for spec in specs:
      _verify(local_path(spec.path, f'data.sources.{spec.name}.path'))
  return texts


def check_apart(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Checks that no source is a folder in which the run would write what it then reads.

  Raises:
    UserError: one is; a folder of `prepare` is none, as it says which files it holds.
  """
  for name, source in config.data.sources.items():
    folder = read_below(local_path(source.path, f'data.sources.{name}.path'))
    if not folder or os.path.exists(os.path.join(folder, MANIFEST)):
      continue
    if workdir.is_relative_to(os.path.realpath(folder)):
      raise UserError(
        f'--workdir={workdir} is in {folder}, whose files data.sources.{name} reads: a restart '
        'would take what the run writes for text. Use a --workdir elsewhere.'
      )


def load_data(
  config: config_dict.ConfigDict,
  start: data_lib.StreamStart,
  local_workers: Sequence[int],
  texts: Texts | None = None,
) -> Data:
  """Plans what a run reads.

  Args:
    config: of the run.
    start: where the training stream begins.
    local_workers: the workers whose batches this process reads.
    texts: of this config, if they are open already.

  Raises:
    UserError: as `open_texts`.
  """
  texts = texts or open_texts(config)
  return Data(
    tokenizer=texts.tokenizer,
    train=texts.train,
    validation=texts.validation,
    stream=data_lib.TrainingStream(
      texts.train,
      workers=config.workers,
      batch_size=batch_of(config).worker_sequences,
      seed=config.seed,
      local_workers=local_workers,
      start=start,
    ),
    held_out=data_lib.Validation(texts.validation, texts.tokenizer, config.eval.sequences or None),
  )


def _verify(path: str) -> None:
  """Compares the shards of a prepared folder with its manifest, each in one process of all."""
  if not os.path.exists(os.path.join(path, MANIFEST)):
    return
  manifest = data_lib.read_manifest(path)
  mine = manifest.shards[peers().index :: peers().count]
  data_lib.verify_shards(path, dataclasses.replace(manifest, shards=mine))
