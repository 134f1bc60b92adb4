"""A GPT of 16M: the size of the paper's quick ablations.

  python run.py --config=configs/gpt_16m.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_16m.py:sotu        # the built-in text

Parameters: 16,042,240 (4 layers, width 256, 4 heads, vocabulary 50,368).
Tokens: 1.6B in 768 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 0.26 GB a worker for parameters, consensus and two moments, 0.06 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 0.06 GB of payload a sync: parameters every 256 steps, first moment every 768, second
  every 1,536; 170.67x less than DDP.

4/256/4 is the authors' size; the number of tokens is ours: about 100 a parameter.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(data, layers=4, width=256, heads=4, steps=768, warmup_steps=128)
