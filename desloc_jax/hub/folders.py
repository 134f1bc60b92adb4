"""Folders of the Hugging Face kind as models: config.json, safetensors and a tokenizer.json.

What our model would not compute exactly is refused with its reason, before a tensor is read.
"""

from collections.abc import Iterator, Mapping
import functools
import json
import pathlib
from typing import Any

import numpy as np

from desloc_jax import data as data_lib
from desloc_jax.errors import UserError
from desloc_jax.hub import layouts
from desloc_jax.hub.stored import leaf_names
from desloc_jax.hub.tokenizer_folder import read_tokenizer
from desloc_jax.model import GPTConfig
from desloc_jax.paths import shown

CONFIG_FILE, INDEX_FILE = 'config.json', 'model.safetensors.index.json'
WEIGHTS_FILE, PROVENANCE_FILE = 'model.safetensors', 'provenance.json'
_DTYPES = ('F32', 'BF16', 'F16')
# Tensors that older folders hold and no model reads.
_UNUSED = ('rotary_emb.inv_freq',)
# What a model must not have, where config.json names it: option -> values that change nothing.
_OFF = {
  'attention_bias': (False, None),
  'use_sliding_window': (False, None),
  'quantization_config': (None,),
  'partial_rotary_factor': (1.0, 1, None),
  'attention_multiplier': (None,),
  'logits_scaling': (1.0, 1, None),
  'final_logit_softcapping': (None,),
}


class FolderModel:
  """A model in a folder; see `StoredModel`."""

  def __init__(self, folder: pathlib.Path):
    """Reads the configuration and the list of tensors, and no tensor but constant ones.

    Raises:
      UserError: the folder is none of a model, or of one that ours does not compute exactly.
    """
    self._folder, self.label = folder, shown(folder)
    self.about = _read_json(folder / PROVENANCE_FILE) or {}
    content = _read_json(folder / CONFIG_FILE)
    if not isinstance(content, dict) or 'architectures' not in content:
      raise UserError(f'{folder} is no folder of a model: it has no {CONFIG_FILE} of one.')
    try:
      self.config, layout = config_of(content)
    except UserError as error:
      raise UserError(f'{self.label} cannot be used exactly: {error}') from error
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(f'{folder / CONFIG_FILE} cannot be used: {error!r:.200}.') from error
    self.seq_len = self.config.seq_len
    self._tensors = list(layouts.tensors(layout, self.config))
    self._files = _tensor_files(folder)
    self._check_tensors()

  @functools.cached_property
  def tokenizer(self) -> data_lib.Tokenizer:
    """The folder's own.

    Raises:
      UserError: it has none that can be read.
    """
    return read_tokenizer(self._folder, dict(self.about.get('tokenizer', {})))

  def read(self, leaf: str) -> np.ndarray:
    """Returns a parameter, float32, all layers.

    Raises:
      UserError: a file cannot be read.
    """
    whole = np.empty(leaf_names(self.config)[leaf].shape, np.float32)
    for tensor in (each for each in self._tensors if each.leaf == leaf):
      part = whole if tensor.layer is None else whole[tensor.layer]
      part = part if tensor.columns is None else part[:, slice(*tensor.columns)].T
      part[...] = self._read_tensor(tensor.name)
    return whole

  def _check_tensors(self) -> None:
    """Checks that all tensors are there, of their shapes, and no others."""
    expected = {tensor.name: tensor for tensor in self._tensors}
    if missing := sorted(expected.keys() - self._files.keys()):
      raise UserError(f'{self.label} lacks {_some(missing)}.')
    others = [n for n in sorted(self._files.keys() - expected.keys()) if not n.endswith(_UNUSED)]
    if self.config.tie_embeddings:  # Some write it twice; it is not read.
      others = [name for name in others if name != 'lm_head.weight']
    if others:
      raise UserError(f'{self.label} holds {_some(others)}, which our model has not.')
    for name, (shape, dtype) in self._shapes():
      if name in expected and (shape != expected[name].shape or dtype not in _DTYPES):
        raise UserError(
          f'{name} of {self.label} is {dtype} {shape}; expected {expected[name].shape} in one of '
          f'{", ".join(_DTYPES)}.'
        )
    for tensor in self._tensors:
      if tensor.leaf is None and (self._read_tensor(tensor.name) != tensor.value).any():
        raise UserError(
          f'{tensor.name} of {self.label} is not {tensor.value:g} throughout: our MLP has no biases.'
        )

  def _shapes(self) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    for file in sorted(set(self._files.values())):
      with _open(self._folder / file) as opened:
        for name in opened.keys():
          found = opened.get_slice(name)
          yield name, (tuple(found.get_shape()), found.get_dtype())

  def _read_tensor(self, name: str) -> np.ndarray:
    with _open(self._folder / self._files[name]) as opened:
      return opened.get_tensor(name)


def config_of(content: Mapping[str, Any]) -> tuple[GPTConfig, layouts.Layout]:
  """Returns our configuration of a config.json, and its layout.

  Raises:
    UserError: our model would compute something else.
    KeyError: a size is missing.
  """
  for name, values in _OFF.items():
    if content.get(name) not in values:
      raise UserError(f'its {name} is {content[name]!r:.80}, which ours has not.')
  architecture = (content['architectures'] or ['none'])[0]
  layout = layouts.of_architecture(architecture, bool(content.get('mlp_bias', False)))
  content = {**layout.defaults, **content}
  if (activation := content.get('hidden_act', 'silu')) != 'silu':
    raise UserError(f"its hidden_act is {activation!r}; ours is 'silu'.")
  kinds = set(content.get('layer_types') or ['full_attention'])
  if kinds != {'full_attention'}:
    raise UserError(f'its layer_types are {", ".join(sorted(kinds))}; ours are full_attention.')
  base, scaling = _rope(content)
  heads = content['num_attention_heads']
  config = GPTConfig(
    vocab_size=content['vocab_size'],
    layers=content['num_hidden_layers'],
    width=content['hidden_size'],
    heads=heads,
    seq_len=content['max_position_embeddings'],
    kv_heads=content.get('num_key_value_heads') or heads,
    head_size=content.get('head_dim') or content['hidden_size'] // heads,
    mlp=layout.mlp,
    mlp_hidden=content['intermediate_size'],
    norm_eps=float(content.get('rms_norm_eps', 1e-6)),
    rope_base=base,
    rope_scaling=scaling,
    qk_norm=layout.qk_norm,
    tie_embeddings=bool(content.get('tie_word_embeddings', False)),
  )
  return config, layout


def _rope(content: Mapping[str, Any]) -> tuple[float, tuple[float, ...]]:
  """Returns base and scaling of the positions; transformers 5 and those before spell them apart.

  Raises:
    UserError: the two spellings differ, or ours has no such scaling.
  """
  spellings = [content.get(name) for name in ('rope_parameters', 'rope_scaling')]
  found = []
  for values in spellings:
    if values:
      base = values.get('rope_theta', content.get('rope_theta', 10_000.0))
      found.append((float(base), _scaling(values)))
  found = found or [(float(content.get('rope_theta', 10_000.0)), ())]
  bases = {base for base, _ in found} | {float(content.get('rope_theta', found[0][0]))}
  if len(set(found)) > 1 or len(bases) > 1:
    raise UserError('its rope_parameters, rope_scaling and rope_theta contradict each other.')
  return found[0]


def _scaling(values: Mapping[str, Any]) -> tuple[float, ...]:
  kind = values.get('rope_type', values.get('type', 'default'))
  if kind == 'default':
    return ()
  if kind != 'llama3':
    raise UserError(f'its positions are scaled by {kind!r}; ours know llama3 and none.')
  names = (
    'factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings',
  )  # fmt: skip
  return tuple(float(values[name]) for name in names)


def _tensor_files(folder: pathlib.Path) -> dict[str, str]:
  """Returns tensor -> file of a folder.

  Raises:
    UserError: it has no safetensors, or an index that names no such file.
  """
  index = _read_json(folder / INDEX_FILE)
  if index is None:
    if not (folder / WEIGHTS_FILE).exists():
      raise UserError(f'{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}.')
    with _open(folder / WEIGHTS_FILE) as opened:
      return dict.fromkeys(opened.keys(), WEIGHTS_FILE)
  try:
    files = {str(name): str(file) for name, file in index['weight_map'].items()}
  except (TypeError, KeyError, AttributeError) as error:
    raise UserError(f'{folder / INDEX_FILE} is no index: {error!r:.100}.') from error
  for file in sorted(set(files.values())):
    if pathlib.Path(file).name != file or not (folder / file).exists():
      raise UserError(f'{folder / INDEX_FILE} names {file!r}, which is not in the folder.')
  for file in sorted(set(files.values())):
    with _open(folder / file) as opened:
      if lost := sorted({name for name, f in files.items() if f == file} - set(opened.keys())):
        raise UserError(f'{folder / file} lacks {_some(lost)}, which {INDEX_FILE} names.')
  return files


def _open(path: pathlib.Path):
  import safetensors  # Only where a folder is read or written.

  try:
    return safetensors.safe_open(path, framework='np')
  except Exception as error:  # The library's own, and the system's.
    raise UserError(f'{path} cannot be read as safetensors: {error!s:.200}.') from error


def _read_json(path: pathlib.Path) -> Any:
  """Returns the content of a file, None if it is not there."""
  try:
    return json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{path} cannot be read: {error!s:.100}.') from error


def _some(names: list[str]) -> str:
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return ', '.join(names[:3]) + more
