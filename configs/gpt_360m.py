"""`configs/gpt.py:360m`, and `configs/gpt.py:360m:sotu` as `configs/gpt_360m.py:sotu`."""

from configs import gpt


def get_config(data='paper'):
  return gpt.get_config(f'360m:{data}')
