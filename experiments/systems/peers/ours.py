"""Our training step, as `run.py` compiles it.

python -m experiments.systems.peers.ours toy TOKENS.npy diloco
"""

import sys
import time

import jax
import numpy as np

from desloc_jax.checkpoints.segment import BEGINNING, make_clock
from desloc_jax.hosts.platforms import prepare_cpus
from desloc_jax.options.table import default_config
from desloc_jax.train.job import ledger_of
from desloc_jax.train.program import make_program, make_worker_mesh
from desloc_jax.version import __version__
from experiments.systems.peers import task as tasks


def config_of(task: tasks.Task, method: str):
  """Returns the options of a run of the task."""
  config = default_config()
  config.update_from_flattened_dict(
    {
      'workers': task.workers, 'batch_size': task.sequences, 'seq_len': task.seq_len,
      'steps': 100_000, 'method': method, 'model.layers': task.layers, 'model.width': task.width,
      'model.heads': task.heads, 'model.vocab_size': tasks.VOCABULARY, 'periods.params': task.period,
      'inner.learning_rate': tasks.LEARNING_RATE, 'inner.b1': tasks.B1, 'inner.b2': tasks.B2,
      'inner.eps': tasks.EPS, 'inner.weight_decay': tasks.WEIGHT_DECAY, 'inner.clip_norm': 0.0,
      'schedule.name': 'constant',
    }
  )  # fmt: skip
  return config


def main() -> None:
  task, tokens = tasks.arguments()
  prepare_cpus()
  config = config_of(task, sys.argv[3])
  clock = make_clock(config, BEGINNING)
  mesh = make_worker_mesh(config, clock.batch, None)
  program = make_program(config, tasks.VOCABULARY, clock, mesh)
  start = time.perf_counter()
  compiled = program.compile()
  compile_s = time.perf_counter() - start
  state = program.make_state()
  like = program.tokens_like
  batches = tokens.astype(np.int32).reshape(len(tokens), *like.shape)

  def steps(first: int, count: int) -> float:
    nonlocal state
    for step in range(first, first + count):
      batch = jax.device_put(batches[step % len(batches)], like.sharding)
      state, metrics = compiled(state, batch, None)
    jax.block_until_ready(state)
    return float(metrics['loss'].mean())

  sizes = ledger_of(program).bytes_per_sync
  payload = sum(size for name, size in sizes.items() if name != 'restarts')  # These are as needed.
  versions = f'desloc_jax {__version__}, jax {jax.__version__}'
  about = {'versions': versions, 'compile_s': compile_s, 'payload_bytes': payload}
  tasks.serve(about, steps)


if __name__ == '__main__':
  main()
