"""What the paper's runs share (arXiv:2505.22549, experimental setup).

Data: `paper` is its mixture, expected as folders made by `python -m desloc_jax prepare`, one a
source, under `data/`:

  for name in fineweb-edu cosmopedia python-edu finemath infiwebmath; do
    python -m desloc_jax prepare --input=RAW/$name --output=data/$name --tokenizer=gpt2
  done

`sotu` is the text that comes with the package, in GPT-2 tokens: far too little for these models,
enough to see one run on a machine before the data is there.

K_x is the largest of the paper's (16, 32, 64, 256) at which a run averages its second moments eight
times at least and its parameters about sixty; at a K_x of 256 the small runs would average them
once or never. The warm-up is the paper's, 512 steps for small and 2,048 for billion-parameter
models, or about a tenth of a run where that would be a third of it.
"""

from ml_collections import config_dict

from desloc_jax.errors import unknown_choice
from desloc_jax.options.table import default_config

# SmolLM2's mixture, by share of the tokens.
MIXTURE = {
  'fineweb-edu': 0.70,
  'cosmopedia': 0.10,
  'python-edu': 0.10,
  'finemath': 0.05,
  'infiwebmath': 0.05,
}


def paper_config(
  data: str,
  *,
  layers: int,
  width: int,
  heads: int,
  steps: int,
  warmup_steps: int,
  params_period: int,
  batch_size: int = 256,
  learning_rate: float = 2.1e-3,
) -> config_dict.ConfigDict:
  """Returns the paper's setting for a model of that size.

  Args:
    data: 'paper' or 'sotu'; see the module docstring.
    layers: transformer blocks.
    width: of the residual stream.
    heads: attention heads.
    steps: of the whole run.
    warmup_steps: of linear warm-up.
    params_period: K_x.
    batch_size: sequences of 2,048 tokens a worker and step; 256 make the paper's 2M tokens.
    learning_rate: of ADOPT at its peak; the paper prints 2.1e-3 for 135M and no other.
  """
  config = default_config()
  config.method = 'desloc'
  config.workers = 4
  config.batch_size = batch_size
  config.accumulation = max(1, batch_size // 32)
  config.seq_len = 2048
  config.steps = steps
  config.periods.params = params_period  # K_u = 3 K_x and K_v = 6 K_x follow.

  config.inner.name = 'adopt'  # b1 = 0.95 and b2 = 0.9999 are its defaults here.
  config.inner.learning_rate = learning_rate
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
  config.eval.every = 6 * params_period  # Where all is averaged.
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
