"""An option that is set and has no effect is named, or refused: of every row of the table."""

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from desloc_jax.checkpoints.segment import BEGINNING, make_clock
from desloc_jax.data.manifest import MANIFEST
from desloc_jax.errors import UserError
from desloc_jax.optimizer.over_workers import AXIS_NAMES, over_workers
from desloc_jax.options.checks import check_config
from desloc_jax.options.effect import (
  condition,
  CONDITIONS,
  MODES,
  tell_of_no_effect,
  without_effect,
)
from desloc_jax.options.table import default_config, OPTIONS
from desloc_jax.train.setup.build_optimizer import make_optimizer

# Word -> options by which it fails, where all others hold.
FAILS = {
  'local': {'method': 'ddp'},
  'outer': {'method': 'desloc'},
  'moments': {'method': 'local_sgd'},
  'params': {'periods.params': 0},
  'averages': {'periods.params': 0},
  'gossip': {'sync.params': 'mean'},
  'several': {'workers': 1},
  'momentum': {'inner.name': 'sgd', 'inner.momentum': 0.0},
  'outer_momentum': {'outer.momentum': 0.0},
  'wsd': {'schedule.name': 'cosine'},
  'batch_size': {'global_batch_size': 64},
  'mlp_ratio': {'model.mlp_hidden': 64},
  'late': {'sync.delay': 0},
  'fragments': {'sync.fragments': 1},
  'mix': {'sync.land': 'keep'},
  'check': {'health.check': False},
  'threshold': {'health.threshold': 0.0},
  'rate': {},
  'saves': {},
  'text': {'data.sources.text.path': 'prepared'},
  'shards': {},
  'mixed': {},
  'no_cache_dir': {},
  'plan': {},
  'compile': {},
}
HOLDS = {
  'method': 'desloc_nesterov', 'checkpoint.every': 5, 'failures.rate': 0.1,
  'sync.params': 'gossip', 'sync.delay': 2, 'sync.land': 'mix', 'sync.fragments': 2,
}  # fmt: skip
OTHER = {
  'timing': 'pre', 'sync.land': 'overwrite', 'sync.who': 'fedau', 'outer.name': 'adam', 'compilation.cache': 'programs',
  'sync.moments': 'int8', 'topology': 'v5e:8x8', 'data.on_bad': 'skip',
  'sync.pattern': 'consecutive', 'periods.groups': 'rare=embedding:3',
  'data.sources.text.worker_weights': (1.0, 2.0, 3.0, 4.0),
}  # fmt: skip
CASES = [(name, word) for name, row in OPTIONS.items() for word in row.counts.split()]


def other(name):
  """Returns a value of an option that is not its default, nor off."""
  row = OPTIONS[name]
  numbers = {bool: True, int: 7, float: 0.25 if row.default != 0.25 else 0.5}
  return OTHER[name] if name in OTHER else numbers[row.kind]


def config_of(options):
  config = default_config()
  config.update_from_flattened_dict(options)
  return config


def test_the_words_of_the_table_are_those_that_there_are():
  assert {word for _, word in CASES} == {*CONDITIONS, 'plan', 'compile'} == FAILS.keys()
  assert set(MODES) - CONDITIONS.keys() == set(MODES)


@pytest.mark.parametrize(('name', 'word'), CASES)
def test_an_option_that_does_not_count_is_named_and_one_that_does_is_not(
  name, word, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  (tmp_path / 'prepared').mkdir()
  (tmp_path / 'prepared' / MANIFEST).touch()
  words = OPTIONS[name].counts.split()
  mode = next((w for w in words if w in MODES), 'train')
  config = config_of(HOLDS | {name: other(name)})
  if 'shards' in words:
    config.data.sources.text.path = 'prepared'
  if 'mixed' in words:
    with config.unlocked():
      config.data.sources.more = config.data.sources.text.copy_and_resolve_references()
  assert name not in without_effect(config, mode=mode)
  failing = config_of(HOLDS | {name: other(name)} | FAILS[word])
  if word == 'no_cache_dir':
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'elsewhere')
  if word == 'rate':
    failing.failures.rate = 0.0
  if word == 'saves':
    failing.checkpoint.every = 0
  assert without_effect(failing, given=[name])[name] == word
  # What a config sets, and the command line another option against it, is no mistake.
  by = condition(word).by
  by = f'{by}.text.path' if by == 'data.sources' else by
  assert name not in without_effect(failing, given=[by])
  assert without_effect(failing, given=[by, name])[name] == word


def test_what_is_off_is_not_named_and_a_default_only_if_it_is_given():
  config = config_of({'method': 'ddp', 'outer.momentum': 0.0, 'stochastic': False})
  assert without_effect(config, given=['outer.momentum', 'stochastic']) == {}
  assert without_effect(config, given=['timing', 'health.check']) == {
    'timing': 'local', 'health.check': 'local',
  }  # fmt: skip


def test_it_is_said_in_one_line_a_reason(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda message, *args: lines.append(message % args))
  tell_of_no_effect(config_of({'outer.momentum': 0.5, 'outer.nesterov': True, 'plan.mfu': 0.3}))
  assert lines == [
    "outer.momentum=0.5, outer.nesterov=True have no effect, as method is 'desloc': they count "
    'where the method has an outer optimizer.',
    "plan.mfu=0.3 has no effect, as --mode is 'train': it counts where the mode is plan.",
  ]


PARAMS = {'kernel': jax.ShapeDtypeStruct((2, 2), 'float32')}
VALUES = {
  'method': 'desloc', 'seed': 3, 'inner.name': 'lion', 'schedule.name': 'constant',
  'worker_weights': (1.0, 2.0, 3.0, 4.0), 'failures.away': '1:3-4', 'failures.attack': '1:flip',
  'sync.exempt': 'kernel', 'sync.average': 'all', 'sync.delay': 1, 'sync.land': 'mix', 'workers': 2,
  **{f'sync.{name}': 'int4' for name in ('params', 'mu', 'nu', 'trace', 'm1', 'm2', 'control')},
}  # fmt: skip
# What the optimizer is not made of, or only with more than one segment or coins.
APART = {'steps', 'stop_at', 'batch_size', 'global_batch_size', 'accumulation', 'seq_len', 'seed',
         'log_every', 'schedule.unit', 'failures.steps', 'method', 'workers'}  # fmt: skip
OF_OPTIMIZER = [
  name for name in OPTIONS
  if name.partition('.')[0] in ('periods', 'sync', 'inner', 'schedule', 'outer', 'health', 'failures')
  or '.' not in name
]  # fmt: skip
BASES = {
  'ddp': {'method': 'ddp'},
  'no averages': {'periods.params': 0},
  'no moments': {'method': 'local_sgd', 'inner.name': 'sgd', 'inner.momentum': 0.0},
}


def program(config):
  """Returns what an optimizer of these options computes, as text."""
  check_config(config)
  optimizer = make_optimizer(config, PARAMS, make_clock(config, BEGINNING))
  extra = {'active': np.ones(4, bool)} if config.failures.away or config.failures.rate else {}

  def step(params, grads):
    update = optimizer.tx.update(grads, optimizer.tx.init(params), params, **extra)
    return update, optimizer.schedule(jnp.float32([3, 60]))

  step = over_workers(step, jax.make_mesh((1,), AXIS_NAMES[:1]), (None, 0), 0)
  zeros = lambda *lead: {'kernel': np.zeros((*lead, 2, 2), np.float32)}
  jaxpr = jax.make_jaxpr(step)(zeros(), zeros(4))
  return f'{jaxpr} {jaxpr.consts}'


@pytest.mark.parametrize('base', BASES)
def test_an_option_changes_the_optimizer_or_is_named_or_refused(base):
  options = {'steps': 64, 'periods.params': 2, 'health.check': False} | BASES[base]
  before = program(config_of(options))
  silent = []
  for name in OF_OPTIMIZER:
    if name in options or name in APART:
      continue
    config = config_of(options | {name: VALUES[name] if name in VALUES else other(name)})
    try:
      if name not in without_effect(config) and program(config) == before:
        silent.append(name)
    except UserError:
      pass
  # False: there is nothing to be on.
  assert set(silent) <= {'moment_guard'}
