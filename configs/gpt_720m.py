"""`configs/gpt.py:720m`, and `configs/gpt.py:720m:sotu` as `configs/gpt_720m.py:sotu`."""

from configs import gpt


def get_config(data='paper'):
  return gpt.get_config(f'720m:{data}')
