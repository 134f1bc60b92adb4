"""`configs/gpt.py:135m`, and `configs/gpt.py:135m:sotu` as `configs/gpt_135m.py:sotu`."""

from configs import gpt


def get_config(data='paper'):
  return gpt.get_config(f'135m:{data}')
