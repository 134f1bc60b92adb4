"""A trainer of no seconds, for tests of what is around it: files and losses as a run leaves them."""

import json
import math

from desloc_jax.logs.workdir import CHECKPOINTS, METRICS_FILE, write_options, write_text
from desloc_jax.options.batch import batch_of
from desloc_jax.options.values import flatten
from desloc_jax.train.divergence import TrainingDiverged

PARAMETERS = 1000


def train(config, workdir):
  """Writes what `loop.train` does, of a loss that falls and depends on all options."""
  write_options(flatten(config), workdir)
  stop = config.stop_at or config.steps
  options = {k: v for k, v in flatten(config).items() if not k.startswith('checkpoint.')}
  offset = sum(map(ord, json.dumps(options))) % 97 / 1000
  lines = [_line(config, step, offset) for step in range(stop + 1)]
  write_text(workdir / METRICS_FILE, ''.join(f'{json.dumps(line)}\n' for line in lines))
  if config.inner.learning_rate > 100:
    raise TrainingDiverged('loss of worker 0 is nan at step 3.')
  (workdir / CHECKPOINTS).mkdir(exist_ok=True)
  last = lines[-1]
  return {
    'method': config.method,
    'train_loss': last['loss'],
    'val_loss': last['val_loss'],
    'bits_per_byte': last['val_loss'] / math.log(2),
    'steps': stop,
    'tokens': last['tokens'],
    'tokens_per_s': 1000.0,
    'parameters': PARAMETERS * config.model.width,
    'workers': config.workers,
    'bytes_per_worker': last['bytes_per_worker'],
    'ddp_ratio': 2.0,
    'local_adam_ratio': 2.0,
    'versions': {'jax': '0'},
    'device': 'none',
  }


def _line(config, step, offset):
  tokens = batch_of(config).tokens * step
  losses = {
    'loss': 3 + offset + 1 / (1 + step),
    'grad_norm': 1.0,
    'activation_norm': 1.0,
    'tokens_per_s': 1000.0,
    'lr': 0.1,
  }
  return {
    'step': step,
    'tokens': tokens,
    'bytes_per_worker': 4 * step * (1 + len(config.method)),
    'val_loss': 3 + offset + 1 / (1 + step),
    **(losses if step else {}),
  }
