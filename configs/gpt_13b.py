"""A GPT of 13B: the largest size that the paper computes days for, and does not train.

  python run.py --config=configs/gpt_13b.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_13b.py:sotu        # the built-in text

Parameters: 12,841,210,880 (40 layers, width 5120, 40 heads, vocabulary 50,368).
Tokens: 257.7B in 122,880 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 205.46 GB a worker for parameters, consensus and two moments, 51.36 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 51.36 GB of payload a sync, 170.67x less than DDP in the long run.
Averages: parameters 480 times (every 256 steps), first moment 160 (768), second 80 (1,536).
Time: 19.4 days by --mode=plan (4 workers of 8 H100s, 40% of their peak, 100 Gb/s); not run yet.

40/5120/40 are LLaMA's numbers at that size; the number of tokens is ours: about 20 a parameter.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(
    data, layers=40, width=5120, heads=40, steps=122_880, warmup_steps=2048, params_period=256
  )
