"""From the name of a tokenizer, or the path of its file, to the tokenizer."""

from collections.abc import Mapping
import functools
import json
import os
from typing import Any

from desloc_jax.data import gpt2, tokenizer_files
from desloc_jax.data.hugging_face import HuggingFaceTokenizer
from desloc_jax.data.tokenizers import BUILT_IN, ByteTokenizer, END_OF_TEXT, Tokenizer
from desloc_jax.errors import unknown_choice, UserError

_USUAL_ENDS = (END_OF_TEXT, '<|end_of_text|>', '</s>', '<eos>', '<|eos|>', '[EOS]', '[SEP]')


def load_tokenizer(spec: str, end_of_document: str | None = None) -> Tokenizer:
  """Returns the tokenizer that `spec` names.

  Args:
    spec: 'bytes' (vocabulary 257), 'gpt2' (vocabulary 50,257) or the path of a Hugging Face
      `tokenizer.json`.
    end_of_document: the special token that closes a document, for a `tokenizer.json` where none has
      a usual name.

  Raises:
    UserError: `spec` is neither a name nor a readable tokenizer file, or the end-of-document token
      is none of its special tokens, or stands for unknown text too.
  """
  if spec in BUILT_IN:
    if end_of_document:
      raise UserError(
        f'end_of_document {end_of_document!r} is only for a tokenizer.json; tokenizer {spec!r} '
        'has its own.'
      )
    return _load_built_in(spec)
  if not os.path.isfile(spec):
    raise unknown_choice('tokenizer', spec, (*BUILT_IN, 'PATH/tokenizer.json'))
  return _load_file(spec, end_of_document)


@functools.cache
def _load_built_in(name: str) -> Tokenizer:
  if name == 'bytes':
    return ByteTokenizer()
  ranks = gpt2.read_ranks_file()
  tokenizer = gpt2.build_tokenizer(gpt2.parse_ranks(ranks))
  tokenizer.add_special_tokens([END_OF_TEXT])
  return HuggingFaceTokenizer(name, json.loads(tokenizer.to_str()), END_OF_TEXT, ranks)


def _load_file(path: str, end_of_document: str | None) -> Tokenizer:
  with open(path, 'rb') as opened:
    file = definition = opened.read()
  try:
    content = tokenizer_files.parse(definition.decode('utf-8'))
  except Exception as error:  # The library raises nothing narrower.
    raise UserError(f'{path} is not a Hugging Face tokenizer.json: {error}') from error
  end = _find_end_of_document(path, content, end_of_document)
  definition += b'\0end of document %d' % tokenizer_files.special_tokens(content)[end]
  try:
    tokenizer = HuggingFaceTokenizer(os.path.basename(path), content, end, definition)
  except Exception as error:
    raise UserError(f'{path} cannot be used as a tokenizer: {error}') from error
  if tokenizer.unknown_is_end:
    raise UserError(
      f'{path}: {end!r} is also what unknown text becomes, so it cannot close documents; name '
      'another special token with end_of_document.'
    )
  tokenizer.file = file
  return tokenizer


def _find_end_of_document(path: str, content: Mapping[str, Any], name: str | None) -> str:
  special = tokenizer_files.special_tokens(content)
  if name and name in tokenizer_files.vocabulary(content) and name not in special:
    raise UserError(
      f'end_of_document {name!r} is an ordinary token of {path}, which a text may hold; expected '
      f'one of its special tokens: {", ".join(special) or "none"}.'
    )
  if name and name not in special:
    raise unknown_choice(f'end_of_document of {path}', name, special)
  for candidate in (name,) if name else _USUAL_ENDS:
    if candidate in special:
      return candidate
  raise UserError(
    f'{path} has no end-of-document token of a usual name ({", ".join(_USUAL_ENDS)}) among its '
    f'special tokens ({", ".join(special) or "none"}): name one of them with '
    '--end_of_document, in a run data.end_of_document.'
  )
