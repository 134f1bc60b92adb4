"""A GPT of 360M: the second size of the paper's scaling figure.

  python run.py --config=configs/gpt_360m.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_360m.py:sotu        # the built-in text

Parameters: 402,310,080 (32 layers, width 960, 15 heads, vocabulary 50,368).
Tokens: 8.6B in 4,096 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 6.44 GB a worker for parameters, consensus and two moments, 1.61 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 1.61 GB of payload a sync, 42.67x less than DDP in the long run.
Averages: parameters 64 times (every 64 steps), first moment 21 (192), second 10 (384).
Time: 40 minutes by --mode=plan (4 workers of 8 H100s, 40% of their peak, 100 Gb/s); not run yet.

32/960/15 are SmolLM2's numbers, as the paper's 135M has; the number of tokens is ours: about 21 a
parameter. K_x = 64 is the paper's for sweeps.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(
    data, layers=32, width=960, heads=15, steps=4_096, warmup_steps=512, params_period=64
  )
