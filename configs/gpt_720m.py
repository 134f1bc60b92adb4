"""A GPT of 720M: the outer-Nesterov comparison at 700M (there with K_x = 32).

  python run.py --config=configs/gpt_720m.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_720m.py:sotu        # the built-in text

Parameters: 707,184,640 (12 layers, width 2048, 16 heads, vocabulary 50,368).
Tokens: 15.0B in 7,168 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 11.31 GB a worker for parameters, consensus and two moments, 2.83 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 2.83 GB of payload a sync, 42.67x less than DDP in the long run.
Averages: parameters 112 times (every 64 steps), first moment 37 (192), second 18 (384).
Time: 1.7 hours by --mode=plan (4 workers of 8 H100s, 40% of their peak, 100 Gb/s); not run yet.

12/2048/16 is the authors' size; the number of tokens is ours: about 21 a parameter. K_x = 64 is the
paper's for sweeps; with an outer Nesterov step it takes 32.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(
    data, layers=12, width=2048, heads=16, steps=7_168, warmup_steps=1024, params_period=64
  )
