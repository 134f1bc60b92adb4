"""Small configurations and texts for tests of the trainer."""

import pathlib

import jax
import numpy as np

from desloc_jax.checkpoints.leaves import LeafReader
from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.options.table import default_config
from desloc_jax.train import loop

WORDS = 'the of and to in a union states congress people which our for be by this with'.split()


def write_text(folder, documents=40, words=300):
  """Writes a folder of small text files, the same each time, and returns its path."""
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  for i in range(documents):
    (folder / f'{i:03}.txt').write_text(' '.join(rng.choice(WORDS, words)))
  return folder


def small_config(text, **options):
  """Returns a config of a run of seconds; options have '_' for '.' only where named so below."""
  config = default_config()
  config.workers = 4
  config.batch_size = 2
  config.seq_len = 32
  config.steps = 12
  config.log_every = 1
  config.periods.params = 3
  config.schedule.warmup_steps = 2
  config.model.layers = 2
  config.model.width = 32
  config.model.heads = 2
  config.data.sources.text.path = str(text)
  config.data.validation_fraction = 0.2
  config.eval.sequences = 16
  config.update_from_flattened_dict(options)
  return config


def train_on_two(config, workdir):
  """Trains on two devices, which any even number of workers can share."""
  return loop.train(config, workdir, jax.devices()[:2])


def losses(workdir):
  return [line['loss'] for line in read_metrics(workdir) if 'loss' in line]


def same_bits(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def newest_leaves(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of the newest checkpoint."""
  checkpoints = Checkpoints(workdir / 'checkpoints', keep=1)
  step = max(checkpoints.steps())
  found = checkpoints.leaves(step)
  checkpoints.close()
  reader = LeafReader(workdir / 'checkpoints' / str(step) / 'state')
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
  return {name: np.asarray(reader.read(name, like(leaf))) for name, leaf in found.items()}
