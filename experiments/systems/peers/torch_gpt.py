"""The model of the tasks as a user of PyTorch writes it, and its plain training, eager.

python -m experiments.systems.peers.torch_gpt larger TOKENS.npy
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from experiments.systems.peers import task as tasks


class Block(nn.Module):
  """Attention and an MLP, each behind a norm."""

  def __init__(self, task: tasks.Task):
    super().__init__()
    width, self.heads = task.width, task.heads
    self.attention_norm = nn.RMSNorm(width, eps=tasks.NORM_EPS)
    self.qkv = nn.Linear(width, 3 * width, bias=False)
    self.attention_out = nn.Linear(width, width, bias=False)
    self.mlp_norm = nn.RMSNorm(width, eps=tasks.NORM_EPS)
    self.mlp_up = nn.Linear(width, 4 * width, bias=False)
    self.mlp_down = nn.Linear(4 * width, width, bias=False)

  def forward(self, x, cos, sin):
    batch, length, width = x.shape
    qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)

    def turn(heads):
      first, second = heads.chunk(2, dim=-1)
      return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    out = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
    x = x + self.attention_out(out.transpose(1, 2).reshape(batch, length, width))
    return x + self.mlp_down(F.silu(self.mlp_up(self.mlp_norm(x))))


class GPT(nn.Module):
  """Tokens [batch, seq_len + 1] to the mean loss of the next ones."""

  def __init__(self, task: tasks.Task):
    super().__init__()
    self.embedding = nn.Embedding(tasks.VOCABULARY, task.width)
    self.blocks = nn.ModuleList(Block(task) for _ in range(task.layers))
    self.final_norm = nn.RMSNorm(task.width, eps=tasks.NORM_EPS)
    for name, parameter in self.named_parameters():
      if parameter.ndim == 2:
        into_residual = name.endswith(('attention_out.weight', 'mlp_down.weight'))
        scale = (2 * task.layers) ** -0.5 if into_residual else 1
        nn.init.normal_(parameter, std=tasks.INIT_STDDEV * scale)
    size = task.width // task.heads
    frequencies = tasks.ROPE_BASE ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(task.seq_len)[:, None] * frequencies
    self.register_buffer('cos', angles.cos())
    self.register_buffer('sin', angles.sin())

  def forward(self, tokens):
    x = self.embedding(tokens[:, :-1])
    for block in self.blocks:
      x = block(x, self.cos, self.sin)
    scores = self.final_norm(x) @ self.embedding.weight.T
    return F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())


def adamw(model: nn.Module) -> torch.optim.AdamW:
  """Returns the inner optimizer; its weight decay is of matrices alone."""
  matrices = [p for p in model.parameters() if p.ndim == 2]
  others = [p for p in model.parameters() if p.ndim < 2]
  groups = [{'params': matrices}, {'params': others, 'weight_decay': 0.0}]
  settings = {'betas': (tasks.B1, tasks.B2), 'eps': tasks.EPS, 'weight_decay': tasks.WEIGHT_DECAY}
  return torch.optim.AdamW(groups, tasks.LEARNING_RATE, **settings)


def train(model: GPT, optimizer: torch.optim.Optimizer, batches: np.ndarray):
  """Returns `steps` of `tasks.serve` over batches [steps, sequences, seq_len + 1], again and again."""

  def steps(first: int, count: int) -> float:
    for step in range(first, first + count):
      optimizer.zero_grad()
      loss = model(torch.from_numpy(batches[step % len(batches)]))
      loss.backward()
      optimizer.step()
    return loss.item()

  return steps


def main() -> None:
  task, tokens = tasks.arguments()
  torch.manual_seed(0)
  model = GPT(task)
  about = {'versions': f'torch {torch.__version__}'}
  tasks.serve(about, train(model, adamw(model), tokens[:, 0].astype(np.int64)))


if __name__ == '__main__':
  main()
