"""`configs/gpt.py:125m`, and `configs/gpt.py:125m:sotu` as `configs/gpt_125m.py:sotu`."""

from configs import gpt


def get_config(data='paper'):
  return gpt.get_config(f'125m:{data}')
