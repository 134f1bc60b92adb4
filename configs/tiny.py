"""A GPT of 443,008 parameters, 4 DES-LOC workers, 249 State-of-the-Union messages as bytes.

The first thing to run. It needs no download and no accelerator:

  python run.py --config=configs/tiny.py

Expected on two laptop cores: under two minutes, validation loss from 5.9 to about 1.5 nats per
byte. Periods keep the paper's shape (K_u = 3 K_x, K_v = 6 K_x) at a K_x small enough for every
state to be averaged several times in the run.
"""

from desloc_jax.options.table import default_config


def get_config():
  config = default_config()
  config.workers = 4
  config.batch_size = 4
  config.seq_len = 128
  config.steps = 800
  config.method = 'desloc'
  config.periods.params = 16

  config.inner.name = 'adam'
  config.inner.learning_rate = 4e-3
  config.schedule.warmup_steps = 40
  config.schedule.decay_fraction = 0.2

  config.model.layers = 2
  config.model.width = 128
  config.model.heads = 4

  config.eval.every = 100
  config.checkpoint.every = 200
  return config
