"""`configs/gpt.py:1b`, and `configs/gpt.py:1b:sotu` as `configs/gpt_1b.py:sotu`."""

from configs import gpt


def get_config(data='paper'):
  return gpt.get_config(f'1b:{data}')
