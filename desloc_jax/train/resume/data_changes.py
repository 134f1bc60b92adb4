"""What may differ in the data between a run and the one whose checkpoint it goes on from.

Data is its content: folders may move, and a tokenizer may be spelled in another way. Sources whose
text is the same go on where they were; what is new, or has other text, begins.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from ml_collections import config_dict

from desloc_jax import data as data_lib
from desloc_jax.checkpoints.segment import Segment
from desloc_jax.errors import UserError
from desloc_jax.options.changes import allowed_words
from desloc_jax.train.setup.open_data import Texts


def data_changes(
  config: config_dict.ConfigDict, texts: Texts, position: Mapping[str, Any]
) -> tuple[Segment, list[str]]:
  """Returns where a new segment would begin with this data, and what differs in it, in words.

  Args:
    config: of this run.
    texts: that it reads.
    position: of the checkpoint, from `restore.position_after`; of older runs without `contents`.

  Raises:
    UserError: something differs that `restore.allow` does not permit; a tokenizer never may.
  """
  following: Segment = position['next']
  before = _contents_before(config, texts, position)
  if before == texts.contents:
    return following, []
  _check_tokenizer(config, texts, position)
  origins = _origins(texts.contents, before)
  changes = _in_words(texts.contents, before, origins, following.consumed)
  if 'data' not in allowed_words(config):
    raise UserError(
      f'the data has changed since the checkpoint of step {following.step} was written: '
      f'{", ".join(changes)}. Use the data that the run began with, another --workdir, or permit '
      'it by --config.restore.allow=data.'
    )
  places = {name: place for place, name in enumerate(before)} | dict(following.orders)
  unused = max(places.values(), default=-1) + 1
  consumed, orders = {}, {}
  for name, old in origins.items():
    consumed[name] = following.consumed.get(old, 0)
    orders[name] = places[old] if old else unused
    unused += not old
  return dataclasses.replace(following, consumed=consumed, orders=orders), changes


def _contents_before(
  config: config_dict.ConfigDict, texts: Texts, position: Mapping[str, Any]
) -> dict[str, Sequence[str] | None]:
  """Returns what `Texts.contents` was, None for each source of which that is not known."""
  if 'contents' in position:
    return position['contents']
  names = list(position['next'].consumed)
  same = [
    each for split in (texts.train, texts.validation) for each in split if each[0].name in names
  ]
  known = data_lib.fingerprint(same) == position['data']
  return {name: texts.contents.get(name) if known else None for name in names}


def _check_tokenizer(
  config: config_dict.ConfigDict, texts: Texts, position: Mapping[str, Any]
) -> None:
  spelled = position['config'].get('data.tokenizer')
  same_spelling = config.data.tokenizer == spelled  # All that older checkpoints know of it.
  before = position.get('tokenizer', texts.tokenizer.fingerprint if same_spelling else '')
  if texts.tokenizer.fingerprint != before:
    raise UserError(
      f'the tokenizer (was {spelled!r}, is {config.data.tokenizer!r}) encodes other ids than that '
      'of the checkpoint, which the model has not learnt; use the one that the run began with, or '
      'another --workdir.'
    )


def _origins(
  now: Mapping[str, Sequence[str]], before: Mapping[str, Sequence[str] | None]
) -> dict[str, str]:
  """Returns for each source the one of before that it goes on from, '' for none.

  That is the source of the same name and training text, or else one that is gone and had its text.
  """
  train = lambda contents: contents and contents[0]
  same = {name for name in now if name in before and train(before[name]) == now[name][0]}
  gone = {train(contents): name for name, contents in before.items() if name not in same}
  return {name: name if name in same else gone.pop(now[name][0], '') for name in now}


def _in_words(
  now: Mapping[str, Sequence[str]],
  before: Mapping[str, Sequence[str] | None],
  origins: Mapping[str, str],
  consumed: Mapping[str, int],
) -> list[str]:
  words = []
  for name, old in origins.items():
    if old and old != name:
      words.append(f'source {name} goes on as source {old}, which has its text')
    elif not old and name in before:
      words.append(
        f'source {name} has other text, and begins anew after {consumed.get(name, 0)} sequences'
      )
    elif not old:
      words.append(f'source {name} is new')
    if old and before[old][1] != now[name][1]:
      words.append(f'source {name} holds out other text')
  for name in before:
    if name not in now and name not in origins.values():
      words.append(f'source {name} is left out after {consumed.get(name, 0)} sequences')
  return words or ['sources are in another order']
