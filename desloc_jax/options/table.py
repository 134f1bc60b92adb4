"""Every option of a training run, one row each.

`configs/*.py` start from `default_config()` and change some values; the command line overrides
them (`--config.periods.params=64`). `python run.py --help` and docs/options.md list the rows.
"""

import re
from typing import Any, NamedTuple

from ml_collections import config_dict

from desloc_jax.model.gpt_config import VALID as MODEL
from desloc_jax.optimizer.control_variates import CONTROL
from desloc_jax.optimizer.fragments import PATTERNS
from desloc_jax.optimizer.inner import INNER_OPTIMIZERS
from desloc_jax.optimizer.methods import METHODS, MULTIPLES
from desloc_jax.optimizer.outer import OUTER_OPTIMIZERS
from desloc_jax.optimizer.schedules import SCHEDULES
from desloc_jax.optimizer.syncs import ATTACKS, AVERAGES, LANDINGS, SYNCS
from desloc_jax.optimizer.worker_step.frame import TIMINGS
from desloc_jax.valid import (
  ABOVE_ONE_OR_ZERO,
  ANY,
  at_least,
  BELOW_ONE,
  LIMIT,
  NOT_NEGATIVE,
  one_of,
  OPEN_SHARE,
  POSITIVE,
  POSITIVE_SHARE,
  SHARE,
  Valid,
)

WANDB = ('off', 'offline', 'online')
_MOST_WORKERS = 2**16  # Each has a few Python objects of its own.
# Moments without a period of their own get a multiple of the parameters'.
_PERIOD = at_least(0, LIMIT // max(MULTIPLES.values()))
# How much a worker counts.
WHO = ('present', 'tokens', 'fedau', 'fedstale')
# State fields that options name, beside the parameters.
FIELDS = {
  'mu': 'the first moment (u)',
  'nu': 'the second moment (v)',
  'trace': "SGD's momentum",
  'm1': "ademamix's fast moment",
  'm2': "ademamix's slow moment",
  'control': "scaffold's control variates",
}


class Option(NamedTuple):
  """One row of the table.

  Attributes:
    default: its value; a type: unset, to be given a value of that type.
    valid: which values of its type it takes.
    restart: the words of when a restart may change it. 'always': it does not change what is
      computed (a mesh, a kernel, a loss chunk change the order of sums, and so the last bits); 'workers':
      where their number changes, which it always may; 'content': where the text that it names
      stays the same; each other word: where `restore.allow` has it, first the one that permits
      least. None: never.
    meaning: for people.
    counts: the words of where it has an effect, see `effect.py`; elsewhere a run says that it has
      none, if it is set. None: always, or it is refused where it has none.
  """

  default: Any
  valid: Valid
  restart: str
  meaning: str
  counts: str = ''

  @property
  def kind(self) -> type:
    """The type of its values."""
    return self.default if self.may_be_unset else type(self.default)

  @property
  def may_be_unset(self) -> bool:
    return isinstance(self.default, type)


# fmt: off
OPTIONS = {
  'workers': Option(4, at_least(1, _MOST_WORKERS), 'workers', 'replicas that train locally (W)'),
  'batch_size': Option(8, at_least(1), 'batch', 'sequences a worker and step', 'batch_size'),
  'global_batch_size': Option(0, at_least(0), 'batch',
    'sequences of all workers and step, in place of batch_size; 0: unset'),
  'accumulation': Option(1, at_least(1), 'batch workers',
    'micro-batches that a batch is split into, one after another'),
  'seq_len': Option(128, at_least(1), '', 'tokens a sequence'),
  'steps': Option(100, at_least(1), 'schedule', "steps of the whole run: the schedule's horizon"),
  'stop_at': Option(int, at_least(1), 'always',
    'stop after this step, to be resumed; the schedule stays as it is'),
  'seed': Option(0, at_least(0), '', 'of the initial parameters and of the data order'),
  'method': Option('desloc', one_of(METHODS), 'method',
    'what is averaged, and how: see docs/methods.md'),
  'timing': Option('post', one_of(TIMINGS), 'periods',
    "average after the local step, or before it ('pre', Algorithm 1)", 'local averages'),
  'stochastic': Option(False, ANY, 'periods',
    'average with probability 1 / period at each step, not periodically', 'local averages'),
  'sync_warmup_steps': Option(0, at_least(0), 'periods',
    'steps at the start in which everything is averaged (K = 1)', 'local'),
  'sync_end_steps': Option(0, at_least(0), 'periods',
    'steps at the end in which the parameters are averaged (K_x = 1)', 'local params'),
  'period_growth': Option(1.0, POSITIVE, 'periods',
    'factor by which all periods have grown at the end of the run, linearly; below 1 they shrink',
    'local averages'),
  'moment_guard': Option(True, ANY, 'periods',
    "raise a second moment that an average left below what Adam's can be"),
  'worker_weights': Option((), ANY, 'workers',
    'how much each worker counts in averages; empty: all the same'),
  'log_every': Option(10, at_least(1), 'always', 'steps between lines in metrics.jsonl'),
  'log.wandb': Option('off', one_of(WANDB), 'always',
    "Weights & Biases beside TensorBoard; 'offline' needs no account: `wandb sync` sends it later"),
  'periods.params': Option(16, _PERIOD, 'periods method inner',
    'K_x: steps between averages of the parameters (x); 0: never'),
  **{f'periods.{field}': Option(int, at_least(0), 'periods method inner',
    f'of {meaning}; 0: never; unset: {MULTIPLES[field]} K_x') for field, meaning in FIELDS.items()},
  'periods.consensus': Option(int, at_least(1), 'periods method',
    'where workers gossip, steps between those at which the mean of their models is published; the '
    'last step is one; unset: 4 K_x', 'gossip'),
  'periods.groups': Option('', ANY, '',
    "arrays with a K_x of their own, NAME=PATHS:STEPS, e.g. 'rare=embedding:64, often=norm:4', PATHS a "
    'regular expression; periods of their moments grow with it', 'local params'),
  'sync.params': Option(str, one_of(SYNCS), 'sync method',
    "what is sent of the parameters; unset: the method's own, mean"),
  'sync.moments': Option('mean', one_of(SYNCS), 'sync method', 'what is sent of every moment', 'moments averages'),
  **{f'sync.{field}': Option(str, one_of(SYNCS), 'sync method',
    f'of {meaning}; unset: {"mean" if field == CONTROL else "as sync.moments"}') for field, meaning in FIELDS.items()},
  'sync.block': Option(256, at_least(1), 'sync method',
    'numbers that share a scale in int8, int4, int2, ef21 and econtrol'),
  'sync.keep': Option(64, at_least(1), 'sync method', 'numbers of a chunk that topk sends'),
  'sync.chunk': Option(4096, at_least(1), 'sync method', 'numbers of a chunk of topk'),
  'sync.average': Option('senders', one_of(AVERAGES), 'sync method',
    "of topk: over the workers that sent a coordinate, or over 'all'"),
  'sync.decay': Option(float, SHARE, 'sync method',
    "of the memory of what was not sent; 0: none; unset: the sync's own"),
  'sync.eta': Option(0.1, NOT_NEGATIVE, 'sync method', 'weight of the error in econtrol'),
  'sync.byzantine': Option(int, at_least(0), 'sync method workers',
    "workers that may lie, for robust averages; unset: the method's own"),
  'sync.neighbours': Option(bool, ANY, 'sync method',
    "robust averages of means of nearest neighbours; unset: the method's own, off"),
  'sync.who': Option('present', one_of(WHO), 'sync method',
    'who counts: who is there, by worker_weights; by what each has seen since (tokens); more after it '
    'was away (fedau); or all, by what they sent last (fedstale, of the parameters)'),
  'sync.delay': Option(int, at_least(0), 'sync method',
    "steps from sending to landing, less than every period; unset: the method's own, 0",
    'local averages'),
  'sync.land': Option(str, one_of(LANDINGS), 'sync method',
    "what a worker did since it sent: keep it, overwrite it, mix the two, or eager, which applies a "
    "worker's own share of the parameters at once; unset: the method's own, keep",
    'local averages late'),
  'sync.local_share': Option(float, BELOW_ONE, 'sync method',
    "weight of the local value in sync.land=mix; unset: the method's own, 0",
    'local averages mix'),
  'sync.behind': Option(False, ANY, 'sync method',
    'exchange by a program of its own, between processes, while the sync.delay steps are made; '
    'without the health check',
    'local averages'),
  'sync.fragments': Option(int, at_least(1), '',
    'parts of the model, and of its moments, that are averaged one after another, a part of their '
    "period apart; unset: the method's own, 1", 'local averages'),
  'sync.pattern': Option('strided', one_of(PATTERNS), '',
    'which layers a part has: every N-th, or consecutive ones', 'local averages fragments'),
  'sync.exempt': Option('', ANY, 'sync method',
    "regular expression of arrays averaged by the mean, 'embed|norm', say"),
  'inner.name': Option('adam', one_of(INNER_OPTIMIZERS), 'inner', 'the optimizer of each worker'),
  'inner.learning_rate': Option(3e-3, NOT_NEGATIVE, 'inner', 'peak learning rate'),
  'inner.b1': Option(float, BELOW_ONE, 'inner',
    "decay of the first moment; unset: the optimizer's own"),
  'inner.b2': Option(float, BELOW_ONE, 'inner',
    "decay of the second moment; unset: the optimizer's own"),
  'inner.eps': Option(float, NOT_NEGATIVE, 'inner',
    "added to the denominator; unset: the optimizer's own"),
  'inner.eps_root': Option(float, NOT_NEGATIVE, 'inner',
    'added under the root of adam, as in the theory; unset: 0'),
  'inner.momentum': Option(float, BELOW_ONE, 'inner',
    "of sgd (0: none) and muon; unset: the optimizer's own"),
  'inner.nesterov': Option(bool, ANY, 'inner',
    'Nesterov momentum of sgd, adam and adopt; unset: off', 'momentum'),
  'inner.b3': Option(float, BELOW_ONE, 'inner', "decay of ademamix's slow moment; unset: its own"),
  'inner.alpha': Option(float, NOT_NEGATIVE, 'inner',
    "weight of ademamix's slow moment; unset: its own"),
  'inner.w': Option(float, SHARE, 'inner',
    'weight of the first moment in qh_adam and qh_adopt; unset: 0.98'),
  'inner.weight_decay': Option(0.0, NOT_NEGATIVE, 'inner', 'decoupled, on matrices only'),
  'inner.clip_norm': Option(1.0, NOT_NEGATIVE, 'inner',
    "global norm that each worker's gradient is clipped to; 0: off"),
  'inner.clip_value': Option(0.0, NOT_NEGATIVE, 'inner',
    'bound of each coordinate of the gradient; 0: off'),
  'schedule.name': Option('wsd', one_of(SCHEDULES), 'schedule', 'the course of the learning rate'),
  'schedule.warmup_steps': Option(0, at_least(0), 'schedule', 'of linear warm-up'),
  'schedule.unit': Option('steps', one_of(['steps', 'tokens']), 'schedule',
    "'tokens': as long as steps are at the run's first batch"),
  'schedule.decay_fraction': Option(0.1, SHARE, 'schedule',
    'of the run, at its end, in which wsd decays by 1 - sqrt', 'wsd'),
  'outer.name': Option(str, ANY, 'method',
    f"{', '.join(OUTER_OPTIMIZERS)}, or one of optax; unset: the method's own, sgd", 'outer params'),
  'outer.learning_rate': Option(float, NOT_NEGATIVE, 'method',
    "of the outer optimizer; unset: the method's own, 0.7", 'outer params'),
  'outer.momentum': Option(float, BELOW_ONE, 'method',
    "of the outer sgd; unset: the method's own, 0.9", 'outer params'),
  'outer.nesterov': Option(bool, ANY, 'method',
    "Nesterov momentum in the outer sgd; unset: the method's own, on", 'outer params outer_momentum'),
  'outer.momentum_warmup': Option(0.0, SHARE, 'method',
    'share of the outer steps in which the momentum rises from 0', 'outer params outer_momentum'),
  'outer.momentum_decay': Option(0.0, SHARE, 'method',
    'share of the outer steps, the last, in which it falls to 0', 'outer params outer_momentum'),
  'init.run': Option('', ANY, '',
    "begin from the model of a run: its workdir, or WORKDIR:STEP; '': a random model"),
  'init.model': Option('', ANY, '',
    'begin from a Hugging Face folder: Llama, Qwen3 or Apertus, by safetensors'),
  'model.vocab_size': Option(0, at_least(0), '',
    "tokens in the embedding; 0: the tokenizer's, rounded up to 128"),
  'model.layers': Option(4, MODEL['layers'], '', 'transformer blocks'),
  'model.width': Option(256, MODEL['width'], '', 'of the residual stream'),
  'model.heads': Option(4, MODEL['heads'], '', 'attention heads'),
  'model.seq_len': Option(2048, MODEL['seq_len'], '', 'longest sequence in tokens'),
  'model.kv_heads': Option(0, MODEL['kv_heads'], '',
    'heads of keys and values, each for several heads; 0: as many as heads'),
  'model.head_size': Option(0, MODEL['head_size'], '', 'numbers of a head; 0: width / heads'),
  'model.mlp': Option('plain', MODEL['mlp'], '',
    "a SiLU between two matrices, or a third one as its gate ('gated')"),
  'model.mlp_ratio': Option(4, MODEL['mlp_ratio'], '', 'hidden width of the MLP over the width', 'mlp_ratio'),
  'model.mlp_hidden': Option(0, MODEL['mlp_hidden'], '',
    'hidden width of the MLP; 0: mlp_ratio decides'),
  'model.norm_eps': Option(1e-6, MODEL['norm_eps'], '', 'added to the mean square in each RMSNorm'),
  'model.rope_base': Option(10_000.0, MODEL['rope_base'], '', 'base of the rotary frequencies'),
  'model.rope_scaling': Option((), MODEL['rope_scaling'], '',
    "Llama 3.1's: factor, low, high, positions; empty: none"),
  'model.qk_norm': Option(False, ANY, '', 'RMSNorm on queries and keys'),
  'model.tie_embeddings': Option(True, ANY, '',
    'one matrix for the embedding and the output; False: two'),
  'model.compute_dtype': Option('float32', MODEL['compute_dtype'], '',
    'of activations; parameters are float32'),
  'model.remat': Option('none', MODEL['remat'], 'always',
    'what the backward pass recomputes'),
  'model.attention': Option('auto', MODEL['attention'], 'always', 'which kernel'),
  'model.loss_chunk': Option(2048, MODEL['loss_chunk'], 'always',
    'tokens whose logits are held at once'),
  'data.tokenizer': Option('bytes', ANY, 'content',
    "'bytes', 'gpt2' or a path to a tokenizer.json"),
  'data.end_of_document': Option('', ANY, 'data',
    'its special token that closes a document; empty: one of usual name'),
  'data.on_bad': Option('error', one_of(['error', 'skip']), 'data',
    "records of text that cannot be used: 'skip' leaves out a few", 'text'),
  'data.validation_fraction': Option(0.05, BELOW_ONE, 'content data',
    'of the documents of text sources that is held out', 'text'),
  'data.verify': Option(False, ANY, 'always',
    'compare the sha256 of prepared shards too; their sizes always are', 'shards'),
  'data.attend_across_documents': Option(True, ANY, 'data',
    'whether tokens see the documents before theirs in a sequence'),
  'data.sources.text.path': Option('sotu', ANY, 'content data',
    "text, a prepared folder, or 'sotu' (built in)"),
  'data.sources.text.weight': Option(1.0, ANY, 'data', 'share of the mixture', 'mixed'),
  'data.sources.text.worker_weights': Option((), ANY, 'data workers',
    'share on each worker, if they differ', 'mixed'),
  'data.sources.text.where': Option('', ANY, 'content data',
    "documents to keep, e.g. 'year:1900-1999'"),
  'mesh.fsdp': Option(0, at_least(0), 'always',
    'devices that share one worker; 0: as many as there are'),
  'mesh.straddle': Option(False, ANY, 'always',
    'let one worker have devices of several hosts or slices, for mesh.fsdp'),
  'eval.every': Option(0, at_least(0), 'always',
    'steps between evaluations; 0: at the start and the end only'),
  'eval.sequences': Option(256, at_least(0), 'always',
    'held-out sequences evaluated, of all sources by weight; 0: all'),
  'eval.local_mean': Option(True, ANY, 'always',
    'between syncs evaluate the mean of the local models too: an average that the bytes '
    'sent by training do not count', 'local'),
  'checkpoint.every': Option(0, at_least(0), 'always',
    'steps between checkpoints; 0: at the end only'),
  'checkpoint.keep': Option(2, at_least(1), 'always', 'newest checkpoints kept'),
  'checkpoint.keep_every': Option(0, at_least(0), 'always',
    'steps, of whose multiples the checkpoints are kept for good; 0: none', 'saves'),
  'restore.allow': Option('', ANY, 'always',
    "parts that may differ from the checkpoint's run, e.g. 'batch,schedule'"),
  'health.check': Option(True, ANY, 'health method',
    'leave workers that are not finite, run away or are stuck out of the averages', 'local several params'),
  'health.threshold': Option(10.0, ABOVE_ONE_OR_ZERO, 'health',
    'times as far from the consensus as expected is too far; 0: finiteness only', 'local several params check'),
  'health.decay': Option(0.98, BELOW_ONE, 'health',
    "weight of the past in a worker's mean of the logarithm of that distance", 'local several params check threshold'),
  'health.warmup_syncs': Option(3, at_least(0), 'health',
    'parameter syncs of a worker before its past counts', 'local several params check threshold'),
  'failures.away': Option('', ANY, 'failures workers',
    "workers that are away in some steps, e.g. '3:100-199, 0-1:500-'"),
  'failures.attack': Option('', ANY, 'failures workers',
    f"workers that lie in what they send, e.g. '5:flip, 6-7:scale=100', of {', '.join(ATTACKS)}"),
  'failures.rate': Option(0.0, BELOW_ONE, 'failures',
    'probability that a worker goes away in a step'),
  'failures.steps': Option(100, at_least(1), 'failures',
    'steps that it then stays away, on average', 'rate'),
  'processes.start_timeout_s': Option(120, at_least(1), 'always',
    'seconds that a process waits for the others at the start'),
  'processes.heartbeat_timeout_s': Option(20, at_least(1), 'always',
    'seconds after which a silent process is taken for dead; the others end a few later'),
  'processes.stuck_timeout_s': Option(300, at_least(0), 'always',
    'seconds without a step, if that is over 20 median steps, after which a run is stuck and ends '
    'with code 4; 10 times as many outside of steps (compiling, saving); 0: never'),
  'profile.steps': Option('', ANY, 'always',
    "steps whose profile is written to the workdir's tensorboard/, e.g. '100-103'"),
  'compilation.cache': Option('user', ANY, 'always',
    "folder of compiled programs, which later starts read; '': none; 'user': desloc_jax in "
    '$XDG_CACHE_HOME or ~/.cache', 'no_cache_dir'),
  'topology': Option('', ANY, 'always',
    "of --mode=compile: the TPUs to compile for, e.g. 'v5e:8x8', or '4x v5e:8x8': four slices", 'compile'),
  'plan.bandwidth_gbps': Option(100.0, POSITIVE, 'always',
    'of --mode=plan: 1e9 bits a second from a worker to the next, over all of its devices', 'plan'),
  'plan.latency_ms': Option(1.0, NOT_NEGATIVE, 'always',
    'of a message between workers: about 0.01 in a hall, 10 in a country', 'plan'),
  'plan.bytes_per_value': Option(4.0, POSITIVE, 'always',
    'sent for each value; a run sends 4, of float32', 'plan'),
  'plan.overlap': Option(0.0, BELOW_ONE, 'always',
    'share of the compute time behind which DDP averages gradients; here it waits: 0', 'plan'),
  'plan.devices_per_worker': Option(0, at_least(0), 'always',
    'that share a model; 0: mesh.fsdp, or the most up to 8 that share a micro-batch evenly', 'plan'),
  'plan.peak_tflops': Option(989.0, POSITIVE, 'always',
    'peak of a device: of an H100 in bfloat16, without sparsity', 'plan'),
  'plan.mfu': Option(0.4, POSITIVE_SHARE, 'always',
    'share of the peak that the model reaches without communication', 'plan'),
  'plan.memory_gb': Option(80.0, POSITIVE, 'always', 'of a device, in 1e9 bytes', 'plan'),
  'plan.memory_fraction': Option(0.75, POSITIVE_SHARE, 'always',
    "of it that JAX takes for arrays: .75 on GPUs, unless the run's environment sets "
    'XLA_PYTHON_CLIENT_MEM_FRACTION', 'plan'),
  'plan.share': Option(0.01, OPEN_SHARE, 'always',
    'of the step time that communication may take, to find K_x', 'plan'),
}
# fmt: on
# The words that `restore.allow` takes.
_WORDS = dict.fromkeys(' '.join(row.restart for row in OPTIONS.values()).split())
ALLOWABLE = tuple(word for word in _WORDS if word not in ('always', 'workers', 'content'))


def find_row(name: str) -> Option | None:
  """Returns the row of an option, None if there is none; sources of data may have any name."""
  return OPTIONS.get(re.sub(r'^data\.sources\.[^.]*', 'data.sources.text', name))


def default_config() -> config_dict.ConfigDict:
  """Returns the defaults of every option as a locked, nested ConfigDict."""
  config = config_dict.ConfigDict()
  for name, row in OPTIONS.items():
    *groups, key = name.split('.')
    node = config
    for group in groups:
      if group not in node:
        node[group] = config_dict.ConfigDict()
      node = node[group]
    # A placeholder of its own for each: one that is shared would make the options aliases.
    node[key] = config_dict.placeholder(row.kind) if row.may_be_unset else row.default
  return config.lock()
