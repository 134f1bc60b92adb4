"""Trains a byte-level BPE tokenizer and writes it as a Hugging Face tokenizer.json.

  python -m desloc_jax tokenizer --input=sotu --vocab_size=8192 --output=tokenizer.json

It knows every byte, so it can encode any text, and closes documents with <|endoftext|>.
"""

import argparse
from collections.abc import Iterator, Sequence
import os
import pathlib
import sys

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers, trainers

from desloc_jax import commands, files
from desloc_jax.commands import Option
from desloc_jax.data import splits
from desloc_jax.data.reading import documents
from desloc_jax.data.reading.bad_records import ON_BAD_HELP
from desloc_jax.data.reading.records import READABLE
from desloc_jax.data.tokenizers import END_OF_TEXT
from desloc_jax.errors import UserError
from desloc_jax.paths import local_path

_SMALLEST = 257  # All bytes and the end of a document.


def train_tokenizer(texts: Iterator[str], vocab_size: int, progress: bool = True) -> hf.Tokenizer:
  """Returns a byte-level BPE tokenizer learnt from `texts`, with <|endoftext|> as id 0.

  Args:
    texts: documents, read once.
    vocab_size: ids in all; a small corpus may give fewer.
    progress: whether to show a progress bar.

  Raises:
    UserError: vocab_size is below 257, or no 32-bit number.
  """
  if not _SMALLEST <= vocab_size < 2**31:
    raise UserError(
      f'vocab_size is {vocab_size}, expected at least {_SMALLEST}, the bytes and {END_OF_TEXT}, '
      f'and less than {2**31}.'
    )
  tokenizer = hf.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=progress,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  return commands.parse(
    'desloc_jax tokenizer',
    __doc__,
    argv,
    input=Option(
      str,
      'what to learn from, several separated by commas: sotu, hf:NAME[@REVISION][:CONFIG[:SPLIT]], or files, '
      f'folders or patterns of {READABLE} files',
      required=True,
    ),
    output=Option(pathlib.Path, 'the tokenizer.json to write', required=True),
    vocab_size=Option(8192, f'number of ids, at least {_SMALLEST}'),
    validation_fraction=Option(
      0.0, 'leave out the documents that this fraction holds out in training'
    ),
    text_column=Option('text', 'field that holds the text'),
    on_bad=Option('error', ON_BAD_HELP),
  )


def _read_texts(arguments: argparse.Namespace) -> Iterator[str]:
  found = False
  for path in arguments.input.split(','):
    path = local_path(path, '--input')
    read = documents.read_documents(
      path, text_column=arguments.text_column, on_bad=arguments.on_bad, tell=_tell
    )
    for document in read:
      if not splits.is_held_out(document.text, arguments.validation_fraction):
        found = True
        yield document.text
  if not found:
    raise UserError(f'{arguments.input} has no document to learn from.')


def _tell(line: str) -> None:
  print(line, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; a mistake ends in one line and exit code 2."""
  with commands.one_line_errors():
    arguments = _parse(argv)
    splits.check_validation_fraction(arguments.validation_fraction)
    folder = os.path.dirname(arguments.output) or '.'
    if not os.path.isdir(folder):
      raise UserError(f'--output={arguments.output}: there is no folder {folder}.')
    if os.path.exists(arguments.output):
      raise UserError(f'--output={arguments.output} exists; delete it or choose another name.')
    tokenizer = train_tokenizer(_read_texts(arguments), arguments.vocab_size)
    with files.atomic_write(arguments.output) as file:
      file.write(tokenizer.to_str(pretty=True).encode('utf-8'))
  print(f'{arguments.output}: {tokenizer.get_vocab_size()} ids')


if __name__ == '__main__':
  main()
