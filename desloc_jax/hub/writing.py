"""Writes a model as a folder of the Hugging Face kind, one parameter in memory at a time."""

from collections.abc import Iterator
import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np

from desloc_jax.errors import UserError
from desloc_jax.hub import layouts
from desloc_jax.hub.folders import CONFIG_FILE, INDEX_FILE, PROVENANCE_FILE, WEIGHTS_FILE
from desloc_jax.hub.stored import StoredModel
from desloc_jax.hub.tokenizer_folder import describe, write_json, write_tokenizer
from desloc_jax.logs.metrics import format_bytes
from desloc_jax.version import __version__

DTYPES = ('float32', 'bfloat16')
_SPARE_BYTES = 2**26  # For all that is no weight.


def write_model(
  stored: StoredModel, layout: layouts.Layout, dtype: str, shard_bytes: float, folder: pathlib.Path
) -> int:
  """Writes all files but the model card into a folder that is there; returns the weights' bytes.

  Args:
    stored: to be read leaf by leaf.
    layout: in which it is exact.
    dtype: one of `DTYPES`.
    shard_bytes: of a file of weights, at most; a tensor is never cut.
    folder: empty.

  Raises:
    UserError: the disk has no room for it.
  """
  size = jnp.dtype(dtype).itemsize
  tensors = list(layouts.tensors(layout, stored.config))
  total = sum(_bytes(tensor, size) for tensor in tensors)
  if (free := shutil.disk_usage(folder).free) < total + _SPARE_BYTES:
    raise UserError(
      f'{folder.parent} has {format_bytes(free)} left; {format_bytes(total)} go there.'
    )
  _write_weights(stored, tensors, dtype, shard_bytes, total, folder)
  end = stored.tokenizer.end_of_document
  ends = {'bos_token_id': end, 'eos_token_id': end}
  write_json(folder / CONFIG_FILE, config_content(stored, layout, dtype) | ends)
  # Else some programs generate more than it was trained with.
  generation = {'_from_model_config': True, 'max_length': stored.seq_len, **ends}
  write_json(folder / 'generation_config.json', generation)
  write_tokenizer(stored.tokenizer, stored.seq_len, folder)
  known = {'desloc_jax': __version__, 'tokenizer': describe(stored.tokenizer, folder)}
  write_json(folder / PROVENANCE_FILE, {**stored.about, **known})
  return total


def config_content(stored: StoredModel, layout: layouts.Layout, dtype: str) -> dict[str, Any]:
  """Returns config.json, with both spellings of what transformers 5 and those before name apart."""
  model = stored.config
  scaling = None
  if model.rope_scaling:
    factor, low, high, positions = model.rope_scaling
    scaling = {
      'rope_type': 'llama3',
      'factor': factor,
      'low_freq_factor': low,
      'high_freq_factor': high,
      'original_max_position_embeddings': int(positions),
    }
  content = {
    'architectures': [layout.architecture],
    'model_type': layout.model_type,
    'vocab_size': model.vocab_size,
    'hidden_size': model.width,
    'intermediate_size': model.hidden,
    'num_hidden_layers': model.layers,
    'num_attention_heads': model.heads,
    'num_key_value_heads': model.key_heads,
    'head_dim': model.head_dim,
    'hidden_act': 'silu',
    # What it was trained with: beyond, its positions mean nothing.
    'max_position_embeddings': stored.seq_len,
    'rms_norm_eps': model.norm_eps,
    'rope_theta': model.rope_base,
    'rope_scaling': scaling,
    'rope_parameters': (scaling or {'rope_type': 'default'}) | {'rope_theta': model.rope_base},
    'tie_word_embeddings': model.tie_embeddings,
    'attention_bias': False,
    'attention_dropout': 0.0,
    'initializer_range': 0.02,
    'pad_token_id': None,
    'use_cache': True,
    'torch_dtype': dtype,
    'dtype': dtype,
  }
  return content | ({'mlp_bias': bool(layout.constants)} if layout.model_type == 'llama' else {})


def _write_weights(
  stored: StoredModel,
  tensors: list[layouts.Tensor],
  dtype: str,
  shard_bytes: float,
  total: int,
  folder: pathlib.Path,
) -> None:
  from safetensors.numpy import save_file  # Only where a folder is read or written.

  shards = list(_shards(tensors, shard_bytes, jnp.dtype(dtype).itemsize))
  names, leaf, values = {}, None, None
  for number, shard in enumerate(shards, start=1):
    file = WEIGHTS_FILE
    if len(shards) > 1:
      file = f'model-{number:05}-of-{len(shards):05}.safetensors'
    arrays = {}
    for tensor in shard:
      if tensor.leaf != leaf:
        leaf, values = tensor.leaf, None  # Let go of the last one before the next is read.
        values = None if leaf is None else stored.read(leaf)
      arrays[tensor.name] = np.ascontiguousarray(tensor.of(values).astype(jnp.dtype(dtype)))
      names[tensor.name] = file
    save_file(arrays, folder / file, metadata={'format': 'pt'})
  if len(shards) > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': dict(sorted(names.items()))}
    write_json(folder / INDEX_FILE, index)


def _shards(
  tensors: list[layouts.Tensor], shard_bytes: float, itemsize: int
) -> Iterator[list[layouts.Tensor]]:
  shard, size = [], 0
  for tensor in tensors:
    if shard and size + _bytes(tensor, itemsize) > shard_bytes:
      yield shard
      shard, size = [], 0
    shard.append(tensor)
    size += _bytes(tensor, itemsize)
  yield shard


def _bytes(tensor: layouts.Tensor, itemsize: int) -> int:
  return int(np.prod(tensor.shape, dtype=np.int64)) * itemsize
