"""`configs/gpt.py:16m`, and `configs/gpt.py:16m:sotu` as `configs/gpt_16m.py:sotu`."""

from configs import gpt


def get_config(data='paper'):
  return gpt.get_config(f'16m:{data}')
