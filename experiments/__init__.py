"""The experiments. They draw to files alone, whatever MPLBACKEND a notebook leaves to its commands."""

import os

os.environ['MPLBACKEND'] = 'agg'
