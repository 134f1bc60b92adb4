"""GPT-2's size on FineWeb beside a public benchmark: how many steps to a validation loss of 3.28?

  python run.py --config=configs/anchor.py           # DES-LOC with Muon
  python run.py --config=configs/anchor.py:ddp       # DDP with Muon: what it is to be compared with
  python run.py --config=configs/anchor.py:desloc:sotu   # the built-in text, to see that it runs

The optimization track of https://github.com/KellerJordan/modded-nanogpt (records/track_3_optimization)
fixes model, text and 524,288 tokens a step, of 1,024 tokens a sequence, and counts steps until the loss on
10,485,760 held-out tokens is 3.28; one pass forward and back a step. Its Muon came there in 3,800 steps
at first, and later in 3,375.

As there: tokens a step, sequence, 12 layers of 768 with 6 heads, an output matrix of its own, a norm on
queries and keys, 50,304 tokens, Muon at .02 with a decay of .01, clipping off, a decay over the last 70%
of the run. Other here, so that a run is no entry of the track: the model has SiLU in place of squared ReLU,
no biases, no soft cap of the logits, rotary positions in all of a head, zeros nowhere at the start; the rate
falls by 1 - sqrt; embedding and output matrix have Muon's rate, there .3 and 1/320; held-out documents are a
hundredth of the text by hash, there its first 10M tokens. The claim that can be made is of two runs of
this config: how many steps more DES-LOC takes than DDP. Nothing of this has been run yet but on the built-in
text, to see that it runs.

docs/data.md#fineweb-for-the-anchor says how to make the text, how long a run takes and what counts.
"""

from desloc_jax.errors import unknown_choice
from desloc_jax.options.table import default_config

METHODS = ('desloc', 'local_adam', 'ddp')


def get_config(argument: str = 'desloc'):
  method, _, text = argument.partition(':')
  if method not in METHODS:
    raise unknown_choice('the method behind configs/anchor.py:', method, METHODS)
  if text not in ('', 'sotu'):
    raise unknown_choice('the text behind the method', text, ('sotu',))
  config = default_config()
  config.method = method
  config.workers = 4
  config.batch_size = 128
  config.seq_len = 1024
  config.accumulation = 16
  config.steps = 3_800
  config.periods.params = 32  # The paper's with Muon: 32, 96, 192.

  config.inner.name = 'muon'
  config.inner.learning_rate = 0.02
  config.inner.weight_decay = 0.01
  config.inner.clip_norm = 0.0
  config.schedule.decay_fraction = 0.7

  config.model.vocab_size = 50_304
  config.model.layers = 12
  config.model.width = 768
  config.model.heads = 6
  config.model.seq_len = 1024
  config.model.qk_norm = True
  config.model.tie_embeddings = False
  config.model.compute_dtype = 'bfloat16'

  config.data.tokenizer = 'gpt2'
  if not text:
    config.data.sources.text.path = 'data/fineweb10B'

  config.log_every = 10
  config.eval.every = 192  # Where all is averaged.
  config.eval.sequences = 10_240
  config.checkpoint.every = 768
  config.plan.devices_per_worker = 1
  return config
