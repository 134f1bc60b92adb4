"""A GPT of 125M: GPT-2's small size.

  python run.py --config=configs/gpt_125m.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_125m.py:sotu        # the built-in text

Parameters: 123,636,480 (12 layers, width 768, 12 heads, vocabulary 50,368).
Tokens: 3.2B in 1,536 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 1.98 GB a worker for parameters, consensus and two moments, 0.49 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 0.49 GB of payload a sync: parameters every 256 steps, first moment every 768, second
  every 1,536; 170.67x less than DDP.

12/768/12 is the authors' size; the number of tokens is ours: about 25 a parameter.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(data, layers=12, width=768, heads=12, steps=1_536, warmup_steps=512)
