"""The experiments. They draw to files alone, whatever MPLBACKEND a notebook leaves to its commands."""

import os
import sys

from desloc_jax import starting

os.environ['MPLBACKEND'] = 'agg'
if sys.argv[:1] == ['-m']:  # A command of this package, of which nothing is imported yet.
  starting.load('jax')
