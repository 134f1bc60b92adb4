"""`configs/gpt.py:13b`, and `configs/gpt.py:13b:sotu` as `configs/gpt_13b.py:sotu`."""

from configs import gpt


def get_config(data='paper'):
  return gpt.get_config(f'13b:{data}')
