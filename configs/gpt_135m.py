"""A GPT of 135M, the paper's headline: perplexity of DES-LOC 8.96 = Local Adam 8.96, DDP 8.45.

  python run.py --config=configs/gpt_135m.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_135m.py:sotu        # the built-in text

Parameters: 148,486,464 (30 layers, width 576, 9 heads, vocabulary 50,368).
Tokens: 6.4B in 3,052 steps of 2.1M over 4 workers, sequences of 2,048.
Memory: 2.38 GB a worker for parameters, consensus and two moments, 0.59 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 0.59 GB of payload a sync: parameters every 256 steps, first moment every 768, second
  every 1,536; 170.67x less than DDP.

30/576/9, 6.4B tokens and the warm-up are the paper's.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(data, layers=30, width=576, heads=9, steps=3_052, warmup_steps=512)
