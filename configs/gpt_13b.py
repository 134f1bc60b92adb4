"""A GPT of 13B: the largest size that the paper computes days for, and does not train.

  python run.py --config=configs/gpt_13b.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_13b.py:sotu        # the built-in text

Parameters: 12,841,210,880 (40 layers, width 5120, 40 heads, vocabulary 50,368).
Tokens: 257.7B in 122,880 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 205.46 GB a worker for parameters, consensus and two moments, 51.36 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 51.36 GB of payload a sync: parameters every 256 steps, first moment every 768, second
  every 1,536; 170.67x less than DDP.

40/5120/40 are LLaMA's numbers at that size; the number of tokens is ours: about 20 a parameter.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(data, layers=40, width=5120, heads=40, steps=122_880, warmup_steps=2048)
