"""A GPT of 16M: the size of the paper's quick ablations.

  python run.py --config=configs/gpt_16m.py             # the paper's data, see common.py
  python run.py --config=configs/gpt_16m.py:sotu        # the built-in text

Parameters: 16,042,240 (4 layers, width 256, 4 heads, vocabulary 50,368).
Tokens: 1.3B in 5,120 steps of 0.26M over 4 workers, sequences of 2,048.
Memory: 0.26 GB a worker for parameters, consensus and two moments, 0.06 GB more for gradients,
  shared among the worker's devices (mesh.fsdp), besides activations.
Network: 0.06 GB of payload a sync, 21.33x less than DDP in the long run.
Averages: parameters 160 times (every 32 steps), first moment 53 (96), second 26 (192).
Time: 17 seconds by --mode=plan (4 workers of 8 H100s, 40% of their peak, 100 Gb/s); not run yet.

4/256/4, the rate of 2^-9, 5,120 steps, the warm-up and K_x = 32 are the authors'; the batch is
ours, and with it the number of tokens: about 84 a parameter.
"""

from configs.common import paper_config


def get_config(data='paper'):
  return paper_config(
    data,
    layers=4,
    width=256,
    heads=4,
    steps=5_120,
    warmup_steps=512,
    params_period=32,
    batch_size=32,
    learning_rate=2**-9,
  )
