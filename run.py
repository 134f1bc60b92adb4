"""Trains a GPT with DES-LOC or a method that it is compared to.

  python run.py --config=configs/tiny.py
  python run.py --config=configs/tiny.py --config.periods.params=64 --config.workers=8
  python run.py --config=configs/tiny.py --config.method=ddp --workdir=runs/ddp

The same command with the same --workdir resumes a run that was stopped.
"""

import pathlib

from absl import app, flags, logging
from ml_collections import config_flags

from desloc_jax.train import cli

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A file of configs/.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where results go; default runs/NAME_OF_CONFIG.')
_MODE = flags.DEFINE_enum('mode', 'train', ['train'], 'What to do.')


def main(argv):
  del argv
  logging.set_verbosity(logging.WARNING)
  from desloc_jax.train.loop import train  # Here, so that --help and typing errors answer at once.

  name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
  train(_CONFIG.value, pathlib.Path(_WORKDIR.value or f'runs/{name}'))


if __name__ == '__main__':
  app.run(cli.exit_with_one_line(main), flags_parser=cli.parse_flags)
