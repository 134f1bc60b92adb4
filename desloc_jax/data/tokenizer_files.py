"""What a tokenizer.json says, made fit for tokenising: the same text gives the same ids, always.

A file may hold what is for serving a model, or for one training run: it drops merges at random, cuts
and fills texts, puts tokens around them. And its vocabulary may hold a special token as a piece like
any other, so that a text that spells it would be taken for it.
"""

from collections.abc import Mapping
import json
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers

from desloc_jax.data import gpt2

# A character that Unicode will never assign: with it around their names, no text spells them.
_MARK = '\U0010ffff'
_RANDOM = ('dropout', 'alpha', 'nbest_size')  # Of BPE, and of Unigram.
_BYTE_CHARACTERS = frozenset(pre_tokenizers.ByteLevel.alphabet())
_KEEP_TEXT = ('ByteLevel', 'Split', 'Digits', 'Punctuation')


def parse(definition: str) -> dict[str, Any]:
  """Returns the content of a tokenizer.json as the library understands it.

  Raises:
    Exception: it is none; the library raises nothing narrower.
  """
  return json.loads(hf.Tokenizer.from_str(definition).to_str())


def special_tokens(content: Mapping[str, Any]) -> dict[str, int]:
  """Returns name -> id of the tokens that the file declares special, in its order."""
  return {token['content']: token['id'] for token in content['added_tokens'] if token['special']}


def vocabulary(content: Mapping[str, Any]) -> set[str]:
  """Returns all tokens of the file."""
  pieces = content['model']['vocab']
  known = pieces if isinstance(pieces, dict) else (piece for piece, *_ in pieces)
  return {*known, *(token['content'] for token in content['added_tokens'])}


def hidden(name: str) -> str:
  """Returns the name of a special token that `without_chance` gives it."""
  return f'{_MARK}{name}{_MARK}'


def without_chance(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """Returns the content that always encodes a text alike, as text alone, and what was left out."""
  model = dict(content['model'])
  chance = {name: model.pop(name) for name in _RANDOM if model.get(name)}
  notes = [
    f'its {name} of {value:g} is left out: the same text must always give the same tokens'
    for name, value in chance.items()
  ]
  plain = dict.fromkeys(('truncation', 'padding', 'post_processor'))
  return {**content, **plain, 'model': model}, notes


def with_hidden_names(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the content with `hidden` names of special tokens, which keep their ids."""
  model = dict(content['model'])
  names = {name: hidden(name) for name in special_tokens(content)}
  if isinstance(model['vocab'], dict):
    model['vocab'] = {names.get(name, name): i for name, i in model['vocab'].items()}
  else:
    model['vocab'] = [[names.get(piece, piece), *score] for piece, *score in model['vocab']]
  if 'merges' in model:  # None may make, or use, a piece that is no text any more.
    model['merges'] = [
      [left, right]
      for left, right in model['merges']
      if not names.keys() & {left, right, left + right}
    ]
  if model.get('unk_token') in names:
    model['unk_token'] = names[model['unk_token']]
  added = [
    token | {'content': names[token['content']] if token['special'] else token['content']}
    for token in content['added_tokens']
  ]
  return {**content, 'model': model, 'added_tokens': added}


def of_bytes(end: str) -> dict[str, Any]:
  """Returns the content of a tokenizer whose ids are UTF-8 bytes, and 256 the special token `end`."""
  tokenizer = hf.Tokenizer(models.BPE({gpt2.spell(bytes([i])): i for i in range(256)}, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([end])
  return json.loads(tokenizer.to_str())


def is_byte_level(content: Mapping[str, Any]) -> bool:
  """Says whether each character of a token is a byte of the text, which is otherwise unchanged."""
  steps = content['pre_tokenizer'] or {}
  steps = steps.get('pretokenizers', [steps])
  decoder = (content['decoder'] or {}).get('type')
  return (
    content['model']['type'] == 'BPE'
    and content['normalizer'] is None
    and decoder == 'ByteLevel'
    and steps[-1].get('type') == 'ByteLevel'
    and all(step.get('type') in _KEEP_TEXT for step in steps)
    and not any(step.get('add_prefix_space') or step.get('behavior') == 'Removed' for step in steps)
    and not any(token['lstrip'] or token['rstrip'] for token in content['added_tokens'])
  )


def knows_all_bytes(content: Mapping[str, Any]) -> bool:
  """Says whether a byte-level vocabulary has a token for every byte."""
  return _BYTE_CHARACTERS <= set(content['model']['vocab'])


def may_drop_text(content: Mapping[str, Any]) -> bool:
  """Says whether text that the vocabulary lacks, or that splits words, may leave no token."""
  model = content['model']
  knows_unknown = model['type'] != 'BPE' or model['unk_token'] or model['byte_fallback']
  splitting = json.dumps(content['pre_tokenizer'])
  return not knows_unknown or 'Removed' in splitting or 'CharDelimiterSplit' in splitting


def unknown_id(content: Mapping[str, Any]) -> int | None:
  """Returns the id of the token that unknown text becomes, None where there is none."""
  model = content['model']
  if 'unk_id' in model:
    return model['unk_id']
  return model['vocab'].get(model['unk_token']) if model.get('unk_token') else None


def byte_length(token: str) -> int:
  """Returns the bytes that a token of a byte-level vocabulary stands for."""
  return sum(1 if c in _BYTE_CHARACTERS else len(c.encode()) for c in token)


def shown(name: str) -> str:
  """Returns the name of a special token that the file gives it, from its `hidden` one."""
  return name.removeprefix(_MARK).removesuffix(_MARK)
