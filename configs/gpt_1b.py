"""A GPT of 1.3B, the paper's comparison at that scale (ARC-C 31.8, ARC-E 59.0, PIQA 70.7).

  python run.py --config=configs/gpt_1b.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_1b.py:sotu        # the built-in text

Parameters: 1,311,213,568 (24 layers, width 2048, 16 heads, vocabulary 50,368).
Tokens: 27.9B in 13,312 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 20.98 GB a worker for parameters, consensus and two moments, 5.24 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 5.24 GB of payload a sync, 170.67x less than DDP in the long run.
Averages: parameters 52 times (every 256 steps), first moment 17 (768), second 8 (1,536).
Time: 5.6 hours by --mode=plan (4 workers of 8 H100s, 40% of their peak, 100 Gb/s); not run yet.

24/2048/16 is the authors' size; the number of tokens is ours: about 21 a parameter. K_x = 256 is
the paper's low-frequency regime, the warm-up that of its billion-parameter runs.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(
    data, layers=24, width=2048, heads=16, steps=13_312, warmup_steps=2048, params_period=256
  )
