"""How large a model is and how much arithmetic it takes, in closed form."""

from desloc_jax.model.gpt_config import GPTConfig


def parameter_count(config: GPTConfig) -> int:
  """Returns the number of parameters, a tied embedding counted once."""
  norms = 2 * config.width + 2 * config.head_dim * config.qk_norm
  lookup = 0 if config.tie_embeddings else config.vocab_size * config.width
  return matmul_parameter_count(config) + lookup + config.layers * norms + config.width


def matmul_parameter_count(config: GPTConfig) -> int:
  """Returns the number of parameters that multiply each token as a matrix.

  These are the four or five projections of each block and the output projection, which may be the
  embedding: its lookup at the input multiplies nothing.
  """
  attention = 2 * (config.heads + config.key_heads) * config.head_dim
  mlp = (3 if config.mlp == 'gated' else 2) * config.hidden
  block = (attention + mlp) * config.width
  return config.layers * block + config.vocab_size * config.width


def flops_per_token(config: GPTConfig) -> int:
  """Returns the floating-point operations to train on one token of a `seq_len` sequence.

  6 * matmul_parameter_count + 12 * layers * heads * head_dim * seq_len: a multiply and an add in the forward
  pass and twice that in the backward pass, for each matmul parameter and for the two matmuls of
  attention. Attention is counted in full, although half of its scores are masked and a causal
  kernel skips them, and recomputation (`remat`, the chunked loss) is not counted: it is the
  convention that model FLOPs utilisation is quoted in.

  Source: PaLM, https://arxiv.org/abs/2204.02311, appendix B.
  """
  attention = 12 * config.layers * config.heads * config.head_dim * config.seq_len
  return 6 * matmul_parameter_count(config) + attention


def activation_bytes(config: GPTConfig, sequences: float) -> float:
  """Returns an estimate of the activations of one forward and backward pass over `sequences`.

  tokens * (layers * stored + block) values of the compute dtype, where a block in work takes
  12 width + 4 hidden (6 if gated), with 2 heads * seq_len more for its scores where attention is not
  cuDNN's, and `stored` is all of that, what the projections give, or width, with remat 'none', 'dots'
  or 'full'. XLA's plans for a CPU are within a third of it (tests/plan/test_plan.py). On top come 8 bytes
  for each score of one loss chunk: scores and their gradient.
  """
  fused = config.attention != 'xla' and config.cudnn_can_attend
  scores = 0 if fused else 2 * config.heads * config.seq_len
  gated = config.mlp == 'gated'
  block = 12 * config.width + (6 if gated else 4) * config.hidden + scores
  qkv = (config.heads + 2 * config.key_heads) * config.head_dim
  stored = {
    'none': block,
    'dots': qkv + 2 * config.width + (1 + gated) * config.hidden,
    'full': config.width,
  }[config.remat]
  tokens = sequences * config.seq_len
  values = tokens * (config.layers * stored + block)
  chunk = min(tokens, max(config.loss_chunk, sequences))
  return values * config.dtype.itemsize + 8 * chunk * config.vocab_size
