"""The config of a run in trouble: in one of its processes something goes wrong, when a file says so.

The variable TROUBLE names a file with a kind and the number of the process, such as 'stuck 1':

  stuck: reads of training data hang.
  stale: listings of checkpoints lack the newest, as those of a file system that several hosts share
    may for some seconds.
"""

import os
import pathlib
import sys
import time

from configs import tiny
from desloc_jax.logs.workdir import CHECKPOINTS


def get_config():
  """Returns the config of `tiny`; from then on this process is in trouble where it is told to be."""
  from desloc_jax.train.speed import inputs  # Parsing the command line needs no JAX.

  read, list_names = inputs.step_inputs, os.listdir

  def stuck_inputs(job, start):
    for each in read(job, start):
      while _in_trouble('stuck'):
        time.sleep(0.1)
      yield each

  def stale_names(path='.'):
    names = list_names(path)
    steps = [name for name in names if name.isdigit()]
    if steps and os.path.basename(str(path).rstrip('/')) == CHECKPOINTS and _in_trouble('stale'):
      names.remove(max(steps, key=int))
    return names

  from desloc_jax.train import loop

  loop.step_inputs, os.listdir = stuck_inputs, stale_names
  return tiny.get_config()


def tell(path: pathlib.Path, kind: str, process: int = 0) -> None:
  """Puts a process in trouble, of those that have `path` in their variable TROUBLE."""
  path.write_text(f'{kind} {process}')


def _in_trouble(kind: str) -> bool:
  try:
    told = pathlib.Path(os.environ['TROUBLE']).read_text().split()
  except (OSError, KeyError):
    return False
  index = next((a.partition('=')[2] for a in sys.argv if a.startswith('--process_id=')), '0')
  return told == [kind, index]
