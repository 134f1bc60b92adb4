"""The tokenizer of a folder that `transformers.AutoTokenizer` reads, and reading it back."""

import json
import pathlib
from typing import Any

from desloc_jax import data as data_lib
from desloc_jax.data.tokenizers import BUILT_IN
from desloc_jax.errors import UserError

TOKENIZER_FILE, SETTINGS_FILE = 'tokenizer.json', 'tokenizer_config.json'


def end_name(tokenizer: data_lib.Tokenizer) -> str:
  """Returns the name of the token that closes a document."""
  return tokenizer.decode([tokenizer.end_of_document])


def write_tokenizer(tokenizer: data_lib.Tokenizer, seq_len: int, folder: pathlib.Path) -> None:
  """Writes the files of a tokenizer that adds no token by itself.

  The end of a document stands for the beginning of a text too, as nothing else begins one.
  """
  special = dict.fromkeys(('bos_token', 'eos_token'), end_name(tokenizer))
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    **special,
    'add_bos_token': False,
    'add_eos_token': False,
    'clean_up_tokenization_spaces': False,
    'model_max_length': seq_len,
  }
  write_json(folder / TOKENIZER_FILE, tokenizer.content)
  write_json(folder / SETTINGS_FILE, settings)
  write_json(folder / 'special_tokens_map.json', special)


def read_tokenizer(folder: pathlib.Path, known: dict[str, Any]) -> data_lib.Tokenizer:
  """Returns the tokenizer of a folder.

  Args:
    folder: with a tokenizer.json.
    known: what provenance.json says of the tokenizer; empty where there is none.

  Raises:
    UserError: there is no tokenizer.json, or what closes a document cannot be told.
  """
  if known.get('name') in BUILT_IN:
    return data_lib.load_tokenizer(known['name'])
  path = folder / TOKENIZER_FILE
  if not path.exists():
    raise UserError(f'{folder} has no {TOKENIZER_FILE}; a slow tokenizer cannot be read.')
  tokenizer = data_lib.load_tokenizer(str(path), _end_of(folder))
  if known.get('file_fingerprint') == tokenizer.fingerprint:
    tokenizer.fingerprint = known['fingerprint']  # It gives the same tokens.
  return tokenizer


def describe(tokenizer: data_lib.Tokenizer, folder: pathlib.Path) -> dict[str, Any]:
  """Returns what provenance.json says of a tokenizer that was written into a folder."""
  known = {'name': tokenizer.name, 'fingerprint': tokenizer.fingerprint}
  if tokenizer.name not in BUILT_IN:
    written = data_lib.load_tokenizer(str(folder / TOKENIZER_FILE), end_name(tokenizer))
    known['file_fingerprint'] = written.fingerprint
  return known


def _end_of(folder: pathlib.Path) -> str | None:
  """Returns the eos_token of a folder, None if it names none."""
  try:
    end = json.loads((folder / SETTINGS_FILE).read_bytes()).get('eos_token')
  except (OSError, ValueError, AttributeError):
    return None
  return end.get('content') if isinstance(end, dict) else end


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes a JSON file for people to read too."""
  path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
