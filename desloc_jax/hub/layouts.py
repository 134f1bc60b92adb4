"""How a GPT of ours is spelt as an architecture of Hugging Face, where the two compute the same.

Every architecture here turns the halves of a head (`rotate_half`) as ours does, so that no row is
moved. Matrices are transposed: theirs are [outputs, inputs].

A plain MLP, down(silu(up(x))), becomes a Llama whose gate projection is our up projection, and whose
up projection is constant: no weights and a bias of one.
"""

from collections.abc import Iterator, Mapping
import dataclasses

import numpy as np

from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.hub.stored import leaf_names
from desloc_jax.model import GPTConfig

# What comes before each name below in a block.
BLOCK = 'model.layers.{}.'
_LLAMA = {
  'attention_norm.scale': ('input_layernorm.weight',),
  'qkv.kernel': ('self_attn.q_proj.weight', 'self_attn.k_proj.weight', 'self_attn.v_proj.weight'),
  'query_norm.scale': ('self_attn.q_norm.weight',),
  'key_norm.scale': ('self_attn.k_norm.weight',),
  'attention_out.kernel': ('self_attn.o_proj.weight',),
  'mlp_norm.scale': ('post_attention_layernorm.weight',),
  'mlp_gate.kernel': ('mlp.gate_proj.weight',),
  'mlp_up.kernel': ('mlp.up_proj.weight',),
  'mlp_down.kernel': ('mlp.down_proj.weight',),
}
_APERTUS = _LLAMA | {
  'attention_norm.scale': ('attention_layernorm.weight',),
  'mlp_norm.scale': ('feedforward_layernorm.weight',),
}
_OUTSIDE = {
  'embedding': 'model.embed_tokens.weight',
  'output_embedding': 'lm_head.weight',
  'final_norm.scale': 'model.norm.weight',
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """An architecture, and what of ours it computes.

  Attributes:
    name: for --layout.
    model_type: of config.json.
    architecture: of config.json.
    mlp: of the models that it computes.
    qk_norm: of the models that it computes.
    blocks: leaf of a block -> tensors of a block that it is cut into.
    constants: tensor of a block -> the one value of all its numbers.
    defaults: what config.json means where it says nothing.
    note: what cannot serve it; '' for nothing.
  """

  name: str
  model_type: str
  architecture: str
  mlp: str
  qk_norm: bool
  blocks: Mapping[str, tuple[str, ...]]
  constants: Mapping[str, float] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, object] = dataclasses.field(default_factory=dict)
  note: str = ''

  def refusal(self, config: GPTConfig) -> str:
    """Returns why a model cannot be written exactly in this layout; '' if it can."""
    if config.mlp != self.mlp:
      return f'model.mlp is {config.mlp!r}, and this layout computes {self.mlp!r}'
    if config.qk_norm != self.qk_norm:
      return f'model.qk_norm is {config.qk_norm}, and this layout computes {self.qk_norm}'
    if self.model_type == 'llama' and config.width % config.heads:
      return f'its model.width {config.width} is no multiple of its model.heads {config.heads}'
    return ''


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a folder, and where it comes from.

  Attributes:
    name: of it.
    shape: of it.
    leaf: of our parameters, by dotted name; None: all its numbers are `value`.
    layer: of the leaf; None for a leaf that no block has.
    columns: (start, stop) of a matrix's outputs, of which the tensor is the transpose; None: the
      tensor is the leaf.
    value: of a constant.
  """

  name: str
  shape: tuple[int, ...]
  leaf: str | None
  layer: int | None = None
  columns: tuple[int, int] | None = None
  value: float = 0.0

  def of(self, leaf: np.ndarray | None) -> np.ndarray:
    """Returns the tensor, of the whole leaf, in the leaf's dtype."""
    if leaf is None:
      return np.full(self.shape, self.value, np.float32)
    part = leaf if self.layer is None else leaf[self.layer]
    return part if self.columns is None else part[:, slice(*self.columns)].T


_LIST = (
  Layout(
    'llama', 'llama', 'LlamaForCausalLM', 'plain', False,
    blocks=_LLAMA | {'mlp_up.kernel': ('mlp.gate_proj.weight',)},
    constants={
      'mlp.up_proj.weight': 0.0, 'mlp.up_proj.bias': 1.0,
      'mlp.gate_proj.bias': 0.0, 'mlp.down_proj.bias': 0.0,
    },
  ),
  Layout('llama', 'llama', 'LlamaForCausalLM', 'gated', False, _LLAMA),
  Layout(
    'apertus', 'apertus', 'ApertusForCausalLM', 'plain', True, _APERTUS,
    defaults={'hidden_act': 'xielu', 'rms_norm_eps': 1e-5},
    note='llama.cpp and vLLM cannot load it: they know Apertus with xIELU only',
  ),
  Layout(
    'qwen3', 'qwen3', 'Qwen3ForCausalLM', 'gated', True, _LLAMA, defaults={'head_dim': 128},
  ),
)  # fmt: skip
LAYOUTS = tuple(dict.fromkeys(layout.name for layout in _LIST))


def find_layout(config: GPTConfig, name: str = 'auto') -> Layout:
  """Returns the layout in which a model is exact, that of this name unless it is 'auto'.

  Raises:
    UserError: the name is unknown, or the model is not exact in it.
  """
  if name not in ('auto', *LAYOUTS):
    raise unknown_choice('layout', name, ('auto', *LAYOUTS))
  named = [layout for layout in _LIST if name in ('auto', layout.name)]
  for layout in named:
    if not layout.refusal(config):
      return layout
  reasons = '; '.join(f'{layout.name}: {layout.refusal(config)}' for layout in named)
  fitting = [layout.name for layout in _LIST if not layout.refusal(config)]
  hint = f' --layout={fitting[0]} is exact.' if fitting else ''
  raise UserError(f'this model is not exact in layout {name}: {reasons}.{hint}')


def of_architecture(architecture: str, mlp_bias: bool) -> Layout:
  """Returns the layout of a folder that was found.

  Raises:
    UserError: there is none.
  """
  for layout in _LIST:
    if layout.architecture == architecture and mlp_bias == bool(layout.constants):
      return layout
  known = [layout.architecture for layout in _LIST]
  if architecture in known:
    raise UserError(f'its {architecture} has biases in the MLP (mlp_bias), which ours has not.')
  raise unknown_choice('its architecture', architecture, known)


def tensors(layout: Layout, config: GPTConfig) -> Iterator[Tensor]:
  """Yields the tensors of a model, those of a leaf together and in the order of the layers."""
  leaves = {name: like.shape for name, like in leaf_names(config).items()}
  for leaf, name in _OUTSIDE.items():
    if leaf in leaves:
      yield Tensor(name, leaves[leaf], leaf)
  for leaf, names in layout.blocks.items():
    if f'blocks.{leaf}' in leaves:
      yield from _tensors_of(f'blocks.{leaf}', names, leaves[f'blocks.{leaf}'], config)
  shapes = {
    'mlp.up_proj.weight': (config.hidden, config.width), 'mlp.up_proj.bias': (config.hidden,),
    'mlp.gate_proj.bias': (config.hidden,), 'mlp.down_proj.bias': (config.width,),
  }  # fmt: skip
  for name, value in layout.constants.items():
    for layer in range(config.layers):
      yield Tensor(BLOCK.format(layer) + name, shapes[name], None, layer, value=value)


def _tensors_of(
  leaf: str, names: tuple[str, ...], shape: tuple[int, ...], config: GPTConfig
) -> Iterator[Tensor]:
  layers, rows, *columns = shape
  sizes = columns
  if len(names) == 3:
    sizes = [n * config.head_dim for n in (config.heads, config.key_heads, config.key_heads)]
  for layer in range(layers):
    if not columns:
      yield Tensor(BLOCK.format(layer) + names[0], (rows,), leaf, layer)
      continue
    stop = 0
    for name, size in zip(names, sizes, strict=True):
      start, stop = stop, stop + size
      yield Tensor(BLOCK.format(layer) + name, (size, rows), leaf, layer, (start, stop))
