"""What a model does in another way on another platform: all of it is chosen here.

The platform is that of a run's mesh, which may be another than the one that compiles for it.
"""

import jax

from desloc_jax import errors
from desloc_jax.model.gpt_config import GPTConfig

_FEW_LAYERS = 8  # More would compile for long.


def attention_implementation(config: GPTConfig) -> str:
  """Returns 'blocks', or what `jax.nn.dot_product_attention` takes: 'cudnn' or 'xla'.

  Raises:
    errors.UserError: `config.attention` is 'cudnn' and the platform is not a GPU.
  """
  platform = _platform(config)
  if config.attention == 'cudnn' and platform != 'gpu':
    raise errors.UserError(
      f"attention is 'cudnn' on {platform!r}: it needs a GPU. Use 'auto' or 'xla'."
    )
  if config.attention != 'auto':
    return config.attention
  if platform == 'gpu' and config.cudnn_can_attend:
    return 'cudnn'
  return 'blocks' if platform == 'cpu' else 'xla'


def unrolls(config: GPTConfig) -> bool:
  """Returns whether the blocks are written out one by one, and not as a scan.

  CPUs copy what goes into and out of a scan's body, a twentieth of a step of a small model.
  """
  few = config.layers <= _FEW_LAYERS and config.remat == 'none'
  return few and _platform(config) == 'cpu'


def _platform(config: GPTConfig) -> str:
  return config.platform or jax.default_backend()
