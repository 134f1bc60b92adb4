"""Trains a GPT with DES-LOC or a method that it is compared to: see desloc_jax/train/main.py.

python run.py --config=configs/tiny.py
"""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  # While libraries are imported Ctrl-C would end in a page, or in nothing at all. Until a run takes
  # it over, it ends the process.
  signal.signal(signal.SIGINT, signal.SIG_DFL)

from desloc_jax.train.main import main  # noqa: E402

if __name__ == '__main__':
  main(sys.argv[1:], 'python run.py')
