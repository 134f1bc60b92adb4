"""Evaluates a run's checkpoints, or an exported model: loss, perplexity and bits a byte, by source.

  python -m desloc_jax eval --workdir=runs/tiny
  python -m desloc_jax eval --workdir=runs/tiny --step=all --output=curve.png
  python -m desloc_jax eval --model=tiny-hf --data=sotu,mine=texts/

Without --data the run's held-out text is read, as the run itself reads it. Of --data a text is read
whole, or the training split where files are named so (PATH:all: all of them, PATH:test: that one), and
of a folder that `prepare` made the split that --split names.

A run reads documents one behind the other. With --documents each is read by itself, as
lm-evaluation-harness does, and the numbers are those of its bits_per_byte.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import math
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from desloc_jax import commands, data as data_lib, files, model as model_lib
from desloc_jax.commands import Option
from desloc_jax.data.manifest import MANIFEST
from desloc_jax.data.splits import SPLITS
from desloc_jax.data.validation import bits_per_byte
from desloc_jax.errors import UserError
from desloc_jax.hub import opening
from desloc_jax.hub.run_models import RunModel
from desloc_jax.hub.stored import read_params, StoredModel
from desloc_jax.inference import document_scores
from desloc_jax.paths import local_path, resolve
from desloc_jax.tables import align
from desloc_jax.valid import at_least, one_of

_DRAWN = ('.png', '.pdf', '.svg')

MIXTURE = 'all'  # The name of what is not one source.


class Source(NamedTuple):
  """Text to be evaluated: the split of it that is read, and the fraction that is held out."""

  spec: data_lib.SourceSpec
  fraction: float
  split: str
  on_bad: str = 'error'


class Row(NamedTuple):
  """What one model got on one source, or on the mixture of all."""

  model: str
  source: str
  count: int  # Sequences, or documents.
  loss: float  # Nats a token.
  bits_per_byte: float

  @property
  def cells(self) -> tuple[str, ...]:
    perplexity = math.exp(min(self.loss, 700.0))
    return (
      self.model, self.source, str(self.count), f'{self.loss:.4f}', f'{perplexity:.3f}',
      f'{self.bits_per_byte:.4f}',
    )  # fmt: skip


def evaluate(stored: StoredModel, held_out: data_lib.Validation) -> list[Row]:
  """Returns a row for each source, and first one of the mixture if there are several."""
  seq_len = held_out.samples[0].packed.seq_len
  config = dataclasses.replace(stored.config, seq_len=seq_len)
  params = read_params(stored)
  of_batch = jax.jit(lambda tokens: model_lib.sequence_losses(params, tokens, config))
  batch = max(1, document_scores.BATCH_TOKENS // seq_len)
  losses = [np.asarray(of_batch(tokens[0])) for tokens in held_out.batches(1, batch)]
  by_source = held_out.by_source(losses)
  rows = [
    Row(stored.label, sample.name, len(sample.indices), by_source[sample.name],
        bits_per_byte(by_source[sample.name], sample.bytes_per_token))
    for sample in held_out.samples
  ]  # fmt: skip
  if len(rows) > 1:
    loss, count = held_out.of_mixture(by_source), sum(row.count for row in rows)
    bits = bits_per_byte(loss, held_out.bytes_per_token)
    rows.insert(0, Row(stored.label, MIXTURE, count, loss, bits))
  return rows


def evaluate_documents(stored: StoredModel, texts: Mapping[str, Iterable[str]]) -> list[Row]:
  """Returns a row for each source of documents."""
  rows = []
  for name, each in texts.items():
    found = document_scores.score(stored, each)
    loss = found.nats / max(1, found.tokens)
    bits = bits_per_byte(loss, found.bytes / max(1, found.tokens))
    rows.append(Row(stored.label, name, found.documents, loss, bits))
  return rows


def own_sources(stored: StoredModel) -> Sequence[Source]:
  """Returns the held-out text of a run's own configuration.

  Raises:
    UserError: the model is of no run.
  """
  if not isinstance(stored, RunModel):
    raise UserError('--model has no data of its own here: name some with --data.')
  by_source = {}
  for name, value in stored.options.items():
    if name.startswith('data.sources.'):
      _, _, source, field = name.split('.')
      by_source.setdefault(source, {})[field] = value
  fraction = stored.options['data.validation_fraction']
  return [
    Source(data_lib.SourceSpec(source, **fields | {'worker_weights': ()}), fraction, 'validation',
           stored.options.get('data.on_bad', 'error'))
    for source, fields in by_source.items()
  ]  # fmt: skip


def named_sources(data: str, split: str) -> Sequence[Source]:
  """Returns `[NAME=]PATH`s with commas between them, all of the same weight."""
  sources = []
  for part in data.split(','):
    name, named, path = part.rpartition('=')
    spec = data_lib.SourceSpec(name if named else os.path.basename(path.rstrip('/')), path)
    sources.append(Source(spec, 0.0, split if _is_prepared(path) else 'train'))
  return sources


def sequences_of(
  stored: StoredModel, sources: Sequence[Source], limit: int | None
) -> data_lib.Validation:
  """Returns sequences of sources, as a run reads them.

  Raises:
    UserError: a source cannot be read.
  """
  opened = [
    (
      spec,
      data_lib.open_source(
        local_path(spec.path, f'source {spec.name}'), stored.tokenizer, split, stored.seq_len,
        fraction, spec.where, verify=False, on_bad=on_bad,
      ),
    )
    for spec, fraction, split, on_bad in sources
  ]  # fmt: skip
  return data_lib.Validation(opened, stored.tokenizer, limit)


def documents_of(source: Source) -> Iterator[str]:
  """Yields the documents of a source of text.

  Raises:
    UserError: it has none, or is prepared.
  """
  spec, fraction, split, on_bad = source
  if _is_prepared(spec.path):
    raise UserError(f'{spec.path} is tokenised: it has no documents for --documents.')
  path = local_path(spec.path, f'source {spec.name}')
  for document in data_lib.read_documents(path, spec.where, on_bad=on_bad):
    if data_lib.is_held_out(document.text, fraction) == (split == 'validation'):
      yield document.text


def _is_prepared(path: str) -> bool:
  return os.path.exists(os.path.join(local_path(path, '--data'), MANIFEST))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  return commands.parse(
    'desloc_jax eval',
    __doc__,
    argv,
    **opening.OF_RUN_OR_FOLDER,
    data=Option('', '[NAME=]PATH[,..]: text, or folders that `prepare` made'),
    split=Option('validation', 'of prepared folders', one_of(SPLITS)),
    sequences=Option(
      int,
      "at most, 0: all (default: of a run's own text its eval.sequences, else all)",
      at_least(0),
    ),
    documents=Option(False, 'each by itself, as lm-evaluation-harness'),
    output=Option(pathlib.Path, 'FILE.png, where the curve of several checkpoints goes'),
  )


def plot(rows: Sequence[Row], steps: Sequence[int], path: pathlib.Path) -> None:
  """Draws the loss of each source against the step."""
  from matplotlib import figure

  drawing = figure.Figure(figsize=(7, 4), layout='constrained')
  axes = drawing.subplots()
  for source in dict.fromkeys(row.source for row in rows):
    axes.plot(steps, [row.loss for row in rows if row.source == source], marker='o', label=source)
  axes.set(xlabel='step', ylabel='loss, nats a token')
  axes.grid(alpha=0.3)
  axes.legend()
  with files.atomic_write(path) as file:
    drawing.savefig(file, dpi=150, format=path.suffix.removeprefix('.'))


def _check_curve(path: pathlib.Path, count: int) -> None:
  if count < 2:
    raise UserError('--output is for a curve: name several checkpoints, or all, with --step.')
  if path.suffix not in _DRAWN:
    raise UserError(f'--output={path} ends in {path.suffix!r}; expected {", ".join(_DRAWN)}.')
  if not path.parent.is_dir():
    raise UserError(f'--output={path}: there is no folder {path.parent}.')


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; a mistake ends in one line and exit code 2."""
  with commands.one_line_errors():
    arguments = _parse(argv)
    models = opening.open_several(arguments)
    output = arguments.output and resolve(arguments.output, '--output')
    if output:
      _check_curve(output, len(models))
    first = models[-1]
    sources = (
      named_sources(arguments.data, arguments.split) if arguments.data else own_sources(first)
    )
    if arguments.documents:
      texts = lambda: {source.spec.name: documents_of(source) for source in sources}
      rows = [row for stored in models for row in evaluate_documents(stored, texts())]
    else:
      limit = arguments.sequences
      if limit is None and not arguments.data:
        limit = first.options['eval.sequences']
      held_out = sequences_of(first, sources, limit or None)
      rows = [row for stored in models for row in evaluate(stored, held_out)]
    count = 'documents' if arguments.documents else 'sequences'
    header = ('model', 'source', count, 'loss', 'perplexity', 'bits a byte')
    print(align([header, *(row.cells for row in rows)]))
    if output:
      plot(rows, [model.about['step'] for model in models], output)
