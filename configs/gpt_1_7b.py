"""`configs/gpt.py:1_7b`, and `configs/gpt.py:1_7b:sotu` as `configs/gpt_1_7b.py:sotu`."""

from configs import gpt


def get_config(data='paper'):
  return gpt.get_config(f'1_7b:{data}')
