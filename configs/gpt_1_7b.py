"""A GPT of 1.7B: the paper's largest run, 40B tokens.

  python run.py --config=configs/gpt_1_7b.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_1_7b.py:sotu        # the built-in text

Parameters: 1,713,899,520 (32 layers, width 2048, 16 heads, vocabulary 50,368).
Tokens: 40.0B in 19,073 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 27.42 GB a worker for parameters, consensus and two moments, 6.86 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 6.86 GB of payload a sync, 170.67x less than DDP in the long run.
Averages: parameters 74 times (every 256 steps), first moment 24 (768), second 12 (1,536).
Time: 10.5 hours by --mode=plan (4 workers of 8 H100s, 40% of their peak, 100 Gb/s); not run yet.

40B tokens and the warm-up are the paper's; it does not print the shape, 32/2048/16 gives 1.7B
with an MLP that is not gated.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(
    data, layers=32, width=2048, heads=16, steps=19_073, warmup_steps=2048, params_period=256
  )
