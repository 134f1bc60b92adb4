"""A GPT of 135M, the paper's headline: perplexity of DES-LOC 8.96 = Local Adam 8.96, DDP 8.45.

  python run.py --config=configs/gpt_135m.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_135m.py:sotu        # the built-in text

Parameters: 148,486,464 (30 layers, width 576, 9 heads, vocabulary 50,368).
Tokens: 6.4B in 3,052 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 2.38 GB a worker for parameters, consensus and two moments, 0.59 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 0.59 GB of payload a sync, 21.33x less than DDP in the long run.
Averages: parameters 95 times (every 32 steps), first moment 31 (96), second 15 (192).
Time: 12 minutes by --mode=plan (4 workers of 8 H100s, 40% of their peak, 100 Gb/s); not run yet.

30/576/9, 6.4B tokens, the rate and the warm-up are the paper's, which trains with K_x = 16 and 256:
at 256 (--config.periods.params=256) parameters are averaged 11 times, first moments 3, second 1.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(
    data, layers=30, width=576, heads=9, steps=3_052, warmup_steps=512, params_period=32
  )
