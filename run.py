"""Trains a GPT with DES-LOC or a method that it is compared to: see desloc_jax/train/main.py.

python run.py --config=configs/tiny.py
"""

import os
import sys

if (root := os.path.dirname(os.path.abspath(__file__))) not in sys.path:  # With -P or -I.
  sys.path.insert(0, root)

from desloc_jax import starting  # noqa: E402

if __name__ == '__main__':
  starting.load('desloc_jax.train.main').main(sys.argv[1:], 'python run.py')
