"""Random models of every kind, as they would lie on disk."""

from desloc_jax import data, model
from experiments.systems.exported import RandomModel

_SIZES = {'layers': 2, 'width': 32, 'heads': 4, 'seq_len': 64, 'attention': 'xla'}
_GATED = {'mlp': 'gated', 'mlp_hidden': 40, 'norm_eps': 1e-5}
# Layout: a model that is exact in it.
KINDS = {
  'llama': {},
  'llama-gated': {**_GATED, 'kv_heads': 2, 'rope_base': 5e5, 'tie_embeddings': False},
  'llama-3': {**_GATED, 'rope_scaling': (8.0, 1.0, 4.0, 32.0), 'head_size': 12},
  'apertus': {'qk_norm': True, 'kv_heads': 2},
  'qwen3': {**_GATED, 'qk_norm': True, 'head_size': 12, 'kv_heads': 1},
}


def random_model(tokenizer='bytes', **changes):
  vocab_size = -(-data.load_tokenizer(tokenizer).vocab_size // 128) * 128
  return RandomModel(model.GPTConfig(vocab_size, **_SIZES | changes), 48, tokenizer)
