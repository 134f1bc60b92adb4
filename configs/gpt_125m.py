"""A GPT of 125M: GPT-2's small size.

  python run.py --config=configs/gpt_125m.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_125m.py:sotu        # the built-in text

Parameters: 123,636,480 (12 layers, width 768, 12 heads, vocabulary 50,368).
Tokens: 3.2B in 1,536 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 1.98 GB a worker for parameters, consensus and two moments, 0.49 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 0.49 GB of payload a sync, 10.67x less than DDP in the long run.
Averages: parameters 96 times (every 16 steps), first moment 32 (48), second 16 (96).
Time: 5 minutes by --mode=plan (4 workers of 8 H100s, 40% of their peak, 100 Gb/s); not run yet.

12/768/12 is the authors' size; the number of tokens is ours: about 26 a parameter. K_x = 16 is the
paper's high-frequency regime.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(
    data, layers=12, width=768, heads=12, steps=1_536, warmup_steps=160, params_period=16
  )
