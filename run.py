"""Trains a GPT with DES-LOC or a method that it is compared to: see desloc_jax/train/main.py.

python run.py --config=configs/tiny.py
"""

import sys

from desloc_jax import starting

if __name__ == '__main__':
  starting.load('desloc_jax.train.main').main(sys.argv[1:], 'python run.py')
