"""Every option of a training run: its name, default and meaning, in one table.

`configs/*.py` start from `default_config()` and change some values; the command line overrides
them (`--config.periods.params=64`).
"""

import json

from ml_collections import config_dict

from desloc_jax.errors import UserError
from desloc_jax.model import GPTConfig
from desloc_jax.optimizer.inner import INNER_OPTIMIZERS
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.optimizer.schedules import SCHEDULES
from desloc_jax.optimizer.syncs import SYNCS

# What `restore.allow` can name: the options, by prefix, that may then differ at a restart.
ALLOWABLE = {
  'periods': (
    'periods.',
    'stochastic',
    'period_growth',
    'sync_warmup_steps',
    'timing',
    'moment_guard',
  ),
  'method': ('method', 'outer.', 'periods.', 'sync.', 'health.check'),
  'sync': ('sync.',),
  'inner': ('inner.', 'periods.'),
  'schedule': ('schedule.', 'steps'),
  'batch': ('batch_size', 'global_batch_size', 'accumulation'),
  'health': ('health.',),
  'failures': ('failures.',),
  'data': ('data.',),
}

# State fields that options name, beside the parameters.
FIELDS = ('mu', 'nu', 'trace', 'm1', 'm2')

# name: (default, meaning). A type as default: unset, to be given a value of that type.
OPTIONS = {
  'workers': (4, 'replicas that train locally (W)'),
  'batch_size': (8, 'sequences a worker and step'),
  'global_batch_size': (0, 'sequences of all workers and step, in place of batch_size; 0: unset'),
  'accumulation': (1, 'micro-batches that a batch is split into, one after another'),
  'seq_len': (128, 'tokens a sequence'),
  'steps': (100, "steps of the whole run: the schedule's horizon"),
  'stop_at': (int, 'stop after this step, to be resumed; the schedule stays as it is'),
  'seed': (0, 'of the initial parameters and of the data order'),
  'method': ('desloc', f'one of {", ".join(METHODS)}'),
  'timing': ('post', "average after the local step ('post') or before it ('pre', Algorithm 1)"),
  'stochastic': (False, 'average with probability 1 / period at each step, not periodically'),
  'sync_warmup_steps': (0, 'steps at the start in which everything is averaged (K = 1)'),
  'period_growth': (1.0, 'factor by which all periods have grown at the end of the run, linearly'),
  'moment_guard': (True, "raise a second moment that an average left below what Adam's can be"),
  'worker_weights': ((), 'how much each worker counts in averages; empty: all the same'),
  'log_every': (10, 'steps between lines in metrics.jsonl'),
  'periods.params': (16, 'K_x: steps between averages of the parameters; 0: never'),
  'periods.mu': (int, 'K_u: of the first moment; 0: never; unset: 3 K_x'),
  'periods.nu': (int, 'K_v: of the second moment; 0: never; unset: 6 K_x'),
  'periods.trace': (int, "of SGD's momentum; 0: never; unset: 3 K_x"),
  'periods.m1': (int, "of ademamix's fast moment; 0: never; unset: 3 K_x"),
  'periods.m2': (int, "of ademamix's slow moment; 0: never; unset: 6 K_x"),
  'sync.params': ('mean', f'what is sent of the parameters: {", ".join(SYNCS)}'),
  'sync.moments': ('mean', 'what is sent of every moment, likewise'),
  'sync.mu': (str, 'of the first moment; unset: as sync.moments'),
  'sync.nu': (str, 'of the second moment; unset: as sync.moments'),
  'sync.trace': (str, "of SGD's momentum; unset: as sync.moments"),
  'sync.m1': (str, "of ademamix's fast moment; unset: as sync.moments"),
  'sync.m2': (str, "of ademamix's slow moment; unset: as sync.moments"),
  'sync.block': (256, 'numbers that share a scale in int8, int4, int2, ef21 and econtrol'),
  'sync.keep': (64, 'numbers of a chunk that topk sends'),
  'sync.chunk': (4096, 'numbers of a chunk of topk'),
  'sync.decay': (float, "of the memory of what was not sent; 0: none; unset: the sync's own"),
  'sync.eta': (0.1, 'weight of the error in econtrol'),
  'sync.exempt': ('', "regular expression of arrays averaged by the mean, 'embed|norm', say"),
  'inner.name': ('adam', f'one of {", ".join(INNER_OPTIMIZERS)}'),
  'inner.learning_rate': (3e-3, 'peak learning rate'),
  'inner.b1': (float, "decay of the first moment; unset: the optimizer's own"),
  'inner.b2': (float, "decay of the second moment; unset: the optimizer's own"),
  'inner.eps': (float, "added to the denominator; unset: the optimizer's own"),
  'inner.eps_root': (float, 'added under the root of adam, as in the theory; unset: 0'),
  'inner.momentum': (float, "of sgd (0: none) and muon; unset: the optimizer's own"),
  'inner.nesterov': (bool, 'Nesterov momentum of sgd, adam and adopt; unset: off'),
  'inner.b3': (float, "decay of ademamix's slow moment; unset: its own"),
  'inner.alpha': (float, "weight of ademamix's slow moment; unset: its own"),
  'inner.w': (float, 'weight of the first moment in qh_adam and qh_adopt; unset: 0.98'),
  'inner.weight_decay': (0.0, 'decoupled, on matrices only'),
  'inner.clip_norm': (1.0, "global norm that each worker's gradient is clipped to; 0: off"),
  'inner.clip_value': (0.0, 'bound of each coordinate of the gradient; 0: off'),
  'schedule.name': ('wsd', f'one of {", ".join(SCHEDULES)}'),
  'schedule.warmup_steps': (0, 'of linear warm-up'),
  'schedule.unit': ('steps', "'steps', or 'tokens': as long as steps are at the run's first batch"),
  'schedule.decay_fraction': (0.1, 'of the run, at its end, in which wsd decays by 1 - sqrt'),
  'outer.learning_rate': (0.7, 'of the outer SGD (methods diloco, desloc_nesterov)'),
  'outer.momentum': (0.9, 'of the outer SGD'),
  'outer.nesterov': (True, 'Nesterov momentum in the outer SGD'),
  'model.vocab_size': (0, "tokens in the embedding; 0: the tokenizer's, rounded up to 128"),
  'model.layers': (4, 'transformer blocks'),
  'model.width': (256, 'of the residual stream'),
  'model.heads': (4, 'attention heads'),
  'model.seq_len': (2048, 'longest sequence in tokens'),
  'model.mlp_ratio': (4, 'hidden width of the MLP over the width'),
  'model.rope_base': (10_000.0, 'base of the rotary frequencies'),
  'model.qk_norm': (False, 'RMSNorm on queries and keys'),
  'model.tie_embeddings': (True, 'one matrix for the embedding and the output; False: two'),
  'model.compute_dtype': ('float32', 'float32 or bfloat16; parameters are float32'),
  'model.remat': ('none', "what the backward pass recomputes: 'none', 'dots' or 'full'"),
  'model.attention': ('auto', "'auto', 'xla' or 'cudnn'"),
  'model.loss_chunk': (2048, 'tokens whose logits are held at once'),
  'data.tokenizer': ('bytes', "'bytes', 'gpt2' or a path to a tokenizer.json"),
  'data.end_of_document': (
    '',
    'its special token that closes a document; empty: one of usual name',
  ),
  'data.on_bad': ('error', "records of text that cannot be used: 'error', or 'skip' a few"),
  'data.validation_fraction': (0.05, 'of the documents of text sources that is held out'),
  'data.verify': (False, 'compare the sha256 of prepared shards too; their sizes always are'),
  'data.sources.text.path': ('sotu', "text, a prepared folder, or 'sotu' (built in)"),
  'data.sources.text.weight': (1.0, 'share of the mixture'),
  'data.sources.text.worker_weights': ((), 'share on each worker, if they differ'),
  'data.sources.text.where': ('', "documents to keep, e.g. 'year:1900-1999'"),
  'mesh.fsdp': (0, 'devices that share one worker; 0: as many as there are'),
  'mesh.straddle': (False, 'let one worker have devices of several hosts or slices, for mesh.fsdp'),
  'eval.every': (0, 'steps between evaluations; 0: at the start and the end only'),
  'eval.sequences': (256, 'held-out sequences evaluated, of all sources by weight; 0: all'),
  'eval.local_mean': (
    True,
    'between syncs evaluate the mean of the local models too: an average that the bytes sent by '
    'training do not count',
  ),
  'checkpoint.every': (0, 'steps between checkpoints; 0: at the end only'),
  'checkpoint.keep': (2, 'newest checkpoints kept'),
  'restore.allow': ('', f"what may differ from the checkpoint's run, of {', '.join(ALLOWABLE)}"),
  'health.check': (
    True,
    'leave workers that are not finite, run away or are stuck out of the averages',
  ),
  'health.threshold': (
    10.0,
    'times as far from the consensus as expected is too far; 0: finiteness only',
  ),
  'health.decay': (0.98, "weight of the past in a worker's mean of the logarithm of that distance"),
  'health.warmup_syncs': (3, 'parameter syncs of a worker before its past counts'),
  'failures.away': ('', "workers that are away in some steps, e.g. '3:100-199, 0-1:500-'"),
  'failures.rate': (0.0, 'probability that a worker goes away in a step'),
  'failures.steps': (100, 'steps that it then stays away, on average'),
  'processes.start_timeout_s': (120, 'seconds that a process waits for the others at the start'),
  'processes.heartbeat_timeout_s': (
    20,
    'seconds after which a silent process is taken for dead; the others end a few later',
  ),
  'processes.stuck_timeout_s': (
    300,
    'seconds without a step, if that is over 20 median steps, after which a run is stuck and ends '
    'with code 4; 10 times as many outside of steps (compiling, saving); 0: never',
  ),
  'compilation.cache': (
    'user',
    "folder of compiled programs, which later starts read; '': none; 'user': desloc_jax in "
    '$XDG_CACHE_HOME or ~/.cache',
  ),
  'topology': (
    '',
    "of --mode=compile: the TPUs to compile for, e.g. 'v5e:8x8', or '4x v5e:8x8': four slices",
  ),
  'plan.bandwidth_gbps': (
    100.0,
    'of --mode=plan: 1e9 bits a second from a worker to the next, over all of its devices',
  ),
  'plan.latency_ms': (1.0, 'of a message between workers: about 0.01 in a hall, 10 in a country'),
  'plan.bytes_per_value': (4.0, 'sent for each value; a run sends 4, of float32'),
  'plan.overlap': (
    0.0,
    'share of the compute time behind which DDP averages gradients; here it waits: 0',
  ),
  'plan.devices_per_worker': (
    0,
    'that share a model; 0: mesh.fsdp, or the most up to 8 that share a micro-batch evenly',
  ),
  'plan.peak_tflops': (989.0, 'peak of a device: of an H100 in bfloat16, without sparsity'),
  'plan.mfu': (0.4, 'share of the peak that the model reaches without communication'),
  'plan.memory_gb': (80.0, 'of a device, in 1e9 bytes'),
  'plan.memory_fraction': (
    0.75,
    "of it that JAX takes for arrays: .75 on GPUs, unless the run's environment sets "
    'XLA_PYTHON_CLIENT_MEM_FRACTION',
  ),
  'plan.share': (0.01, 'of the step time that communication may take, to find K_x'),
}


def default_config() -> config_dict.ConfigDict:
  """Returns the defaults of every option as a locked, nested ConfigDict."""
  config = config_dict.ConfigDict()
  for name, (default, _) in OPTIONS.items():
    *groups, key = name.split('.')
    node = config
    for group in groups:
      if group not in node:
        node[group] = config_dict.ConfigDict()
      node = node[group]
    # A placeholder of its own for each: one that is shared would make the options aliases.
    node[key] = config_dict.placeholder(default) if isinstance(default, type) else default
  return config.lock()


def options_help() -> str:
  """Returns the options by group, one a line, for `--help`."""
  lines, group = [], None
  for name, (default, meaning) in OPTIONS.items():
    if (head := name.rpartition('.')[0]) != group:
      lines.append(f'\n{head or "run"}:')
      group = head
    shown = 'unset' if isinstance(default, type) else repr(default)
    lines.append(f'  --config.{name}={shown}\n      {meaning}')
  return '\n'.join(lines)


def model_config(config: config_dict.ConfigDict, vocab_size: int) -> GPTConfig:
  """Returns the model's configuration for a tokenizer of `vocab_size` tokens.

  Raises:
    UserError: a size is invalid, or the embedding is smaller than the tokenizer's vocabulary.
  """
  options = config.model.to_dict()
  if options['vocab_size'] == 0:
    options['vocab_size'] = -(-vocab_size // 128) * 128
  if options['vocab_size'] < vocab_size:
    raise UserError(
      f"model.vocab_size is {options['vocab_size']}, smaller than the tokenizer's vocabulary "
      f'({vocab_size}); 0 takes a fitting size.'
    )
  try:
    return GPTConfig(**options)
  except UserError as error:
    raise UserError(f'model.{error}') from error


def worker_batch_size(config: config_dict.ConfigDict) -> int:
  """Returns the sequences that each worker takes in a step."""
  if config.global_batch_size:
    return config.global_batch_size // config.workers
  return config.batch_size


def option(config: config_dict.ConfigDict, name: str):
  """Returns the value of a dotted option name."""
  for key in name.split('.'):
    config = config[key]
  return config


def flatten(config: config_dict.ConfigDict) -> dict[str, object]:
  """Returns the options by dotted name, as JSON would give them back."""

  def walk(node, prefix):
    for key, value in node.items():
      if isinstance(value, dict):
        yield from walk(value, f'{prefix}{key}.')
      else:
        yield prefix + key, value

  return dict(walk(json.loads(config.to_json()), ''))
