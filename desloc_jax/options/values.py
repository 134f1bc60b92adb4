"""What is read off a configuration: the model, what a method presets, names and values."""

import json

from ml_collections import config_dict

from desloc_jax.errors import UserError
from desloc_jax.model import GPTConfig
from desloc_jax.optimizer.methods import METHODS


def model_config(
  config: config_dict.ConfigDict, vocab_size: int, document_end: int = -1
) -> GPTConfig:
  """Returns the model's configuration for a tokenizer of `vocab_size` tokens.

  Args:
    config: of the run.
    vocab_size: of the tokenizer.
    document_end: of `GPTConfig`.

  Raises:
    UserError: a size is invalid, or the embedding is smaller than the tokenizer's vocabulary.
  """
  options = config.model.to_dict() | {'document_end': document_end}
  if options['vocab_size'] == 0:
    options['vocab_size'] = -(-vocab_size // 128) * 128
  if options['vocab_size'] < vocab_size:
    raise UserError(
      f"model.vocab_size is {options['vocab_size']}, smaller than the tokenizer's vocabulary "
      f'({vocab_size}); 0 takes a fitting size.'
    )
  try:
    return GPTConfig(**options)
  except UserError as error:
    raise UserError(f'model.{error}') from error


def option(config: config_dict.ConfigDict, name: str):
  """Returns the value of a dotted option name."""
  for key in name.split('.'):
    config = config[key]
  return config


def with_presets(config: config_dict.ConfigDict, group: str) -> dict[str, object]:
  """Returns the options of a group by name, with those of the method where they are unset."""
  presets = METHODS[config.method].options
  values = {name: config[group][name] for name in config[group]}

  def preset(name: str):
    value = presets.get(f'{group}.{name}')
    return value(config.periods.params) if callable(value) else value

  return {name: preset(name) if value is None else value for name, value in values.items()}


def steps_by_name(config: config_dict.ConfigDict) -> dict[str, int | None]:
  """Returns the periods that are set by the name of what they are of, None where they are unset."""
  return {name: period for name, period in config.periods.items() if name != 'groups'}


def gossips(config: config_dict.ConfigDict) -> bool:
  """Whether workers average their parameters with one other at a time."""
  return with_presets(config, 'sync')['params'] == 'gossip' and config.periods.params > 0


def flatten(config: config_dict.ConfigDict) -> dict[str, object]:
  """Returns the options by dotted name, as JSON would give them back."""

  def walk(node, prefix):
    for key, value in node.items():
      if isinstance(value, dict):
        yield from walk(value, f'{prefix}{key}.')
      else:
        yield prefix + key, value

  return dict(walk(json.loads(config.to_json()), ''))
