"""A model that lies on disk, whoever wrote it: what all that reads one asks for."""

from collections.abc import Mapping, Sequence
import functools
from typing import Protocol

import flax.traverse_util
import jax
import numpy as np

from desloc_jax import model as model_lib
from desloc_jax.data import Tokenizer


class StoredModel(Protocol):
  """A model on disk, of which single arrays are read.

  Attributes:
    label: where it is, for messages.
    config: of it.
    seq_len: the longest sequences that it was trained with, in tokens.
    tokenizer: of its text.
    about: what is known of how it was made, JSON types by name.
  """

  label: str
  config: model_lib.GPTConfig
  seq_len: int
  about: Mapping[str, object]

  @property
  def tokenizer(self) -> Tokenizer: ...

  def read(self, leaf: str) -> np.ndarray:
    """Returns one of the parameters by its dotted name, float32, all layers."""
    ...


class Mean:
  """The mean of several models of one kind."""

  def __init__(self, models: Sequence[StoredModel]):
    """Takes at least two, all of one run."""
    first = models[-1]
    self._models = models
    self.config, self.seq_len, self.tokenizer = first.config, first.seq_len, first.tokenizer
    self.label = f'the mean of {", ".join(model.label for model in models)}'
    steps = [model.about['step'] for model in models]
    unknown = {'training_loss': None, 'validation_loss': None}  # Nobody has evaluated the mean.
    self.about = {**first.about, 'averaged_steps': steps, **unknown}

  def read(self, leaf: str) -> np.ndarray:
    """Returns the mean of a parameter, summed in float32."""
    total = self._models[0].read(leaf).copy()
    for model in self._models[1:]:
      total += model.read(leaf)
    return total / np.float32(len(self._models))


@functools.cache
def leaf_names(config: model_lib.GPTConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the parameters of a model by dotted name."""
  init = functools.partial(model_lib.init_params, config)
  return flax.traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep='.')


def read_params(stored: StoredModel) -> model_lib.gpt.Params:
  """Returns all parameters of a model, on the default device."""
  leaves = {name: jax.device_put(stored.read(name)) for name in leaf_names(stored.config)}
  return flax.traverse_util.unflatten_dict(leaves, sep='.')
