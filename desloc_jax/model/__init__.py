"""The GPT that every worker trains: configuration, network, loss and size."""

from desloc_jax.model.gpt import GPT, init_params, logits
from desloc_jax.model.gpt_config import GPTConfig
from desloc_jax.model.loss import (
  next_token_loss,
  next_token_loss_and_metrics,
  sequence_losses,
  token_losses,
)
from desloc_jax.model.size import (
  activation_bytes,
  flops_per_token,
  matmul_parameter_count,
  parameter_count,
)

__all__ = [
  'GPT',
  'GPTConfig',
  'activation_bytes',
  'flops_per_token',
  'init_params',
  'logits',
  'matmul_parameter_count',
  'next_token_loss',
  'next_token_loss_and_metrics',
  'parameter_count',
  'sequence_losses',
  'token_losses',
]
