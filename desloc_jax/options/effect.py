"""Options that have no effect, given the others: a run names them when it starts.

Each row of the table has the words of where it counts (`Option.counts`); here is what they mean.
"""

from collections.abc import Callable, Collection
import os
from typing import NamedTuple

from absl import logging
from ml_collections import config_dict

from desloc_jax.data.manifest import MANIFEST
from desloc_jax.optimizer.methods import Method, METHODS
from desloc_jax.options.table import find_row
from desloc_jax.options.values import flatten, gossips, option, steps_by_name, with_presets


class Condition(NamedTuple):
  """Where an option counts.

  Attributes:
    by: the option that decides, or a flag.
    meaning: what must be so.
    holds: whether it is so in a configuration.
  """

  by: str
  meaning: str
  holds: Callable[[config_dict.ConfigDict], bool]


def _method(config: config_dict.ConfigDict) -> Method:
  return METHODS[config.method]


def _averages_moments(config: config_dict.ConfigDict) -> bool:
  averages = _method(config).states in ('own', 'params') or config.sync_warmup_steps > 0
  return averages and _has_inner_momentum(config)


def _averages_params(config: config_dict.ConfigDict) -> bool:
  return config.periods.params > 0 or _method(config).merges_once


def _has_inner_momentum(config: config_dict.ConfigDict) -> bool:
  name = _method(config).inner.get(config.inner.name, config.inner.name)
  return name != 'sgd' or config.inner.momentum != 0


def _has_outer_momentum(config: config_dict.ConfigDict) -> bool:
  return with_presets(config, 'outer')['momentum'] != 0


def _lands_late(config: config_dict.ConfigDict) -> bool:
  options = with_presets(config, 'sync')
  return bool(options['delay'] or (options['land'] == 'mix' and options['local_share']))


def _prepared(config: config_dict.ConfigDict) -> list[bool]:
  paths = [os.path.expanduser(source.path) for source in config.data.sources.values()]
  return [os.path.exists(os.path.join(path, MANIFEST)) for path in paths]


def _is_on(name: str) -> Condition:
  return Condition(name, f'{name} is not 0', lambda config: bool(option(config, name)))


def _is_off(name: str) -> Condition:
  return Condition(name, f'{name} is 0', lambda config: not option(config, name))


# fmt: off
CONDITIONS = {
  'local': Condition('method', 'workers train locally', lambda c: not _method(c).gradients),
  'outer': Condition('method', 'the method has an outer optimizer', lambda c: _method(c).outer),
  'moments': Condition('method', 'moments are averaged', _averages_moments),
  'params': Condition('periods.params', 'parameters are averaged', _averages_params),
  'averages': Condition('periods.params', 'something is averaged',
    lambda c: any(steps_by_name(c).values()) or c.sync_warmup_steps > 0 or _averages_params(c)),
  'gossip': Condition('sync.params', 'workers gossip about parameters', gossips),
  'several': Condition('workers', 'there are several workers', lambda c: c.workers > 1),
  'momentum': Condition('inner.momentum', 'sgd has momentum', _has_inner_momentum),
  'outer_momentum': Condition('outer.momentum', 'the outer optimizer has momentum', _has_outer_momentum),
  'wsd': Condition('schedule.name', 'the schedule is wsd', lambda c: c.schedule.name == 'wsd'),
  'batch_size': _is_off('global_batch_size'),
  'mlp_ratio': _is_off('model.mlp_hidden'),
  'late': Condition('sync.delay', 'sync.delay is not 0, or sync.land mixes', _lands_late),
  'fragments': Condition('sync.fragments', 'sync.fragments is above 1',
    lambda c: with_presets(c, 'sync')['fragments'] not in (None, 1)),
  'mix': Condition('sync.land', 'sync.land is mix',
    lambda c: with_presets(c, 'sync')['land'] == 'mix'),
  'check': Condition('health.check', 'the check is on', lambda c: c.health.check),
  'threshold': _is_on('health.threshold'),
  'rate': _is_on('failures.rate'),
  'saves': _is_on('checkpoint.every'),
  'text': Condition('data.sources', 'a source is text', lambda c: not all(_prepared(c))),
  'mixed': Condition('data.sources', 'there are several sources', lambda c: len(c.data.sources) > 1),
  'no_cache_dir': Condition('JAX_COMPILATION_CACHE_DIR', 'the environment does not set it',
    lambda c: not os.environ.get('JAX_COMPILATION_CACHE_DIR')),
  'shards': Condition('data.sources', 'a source is a prepared folder', lambda c: any(_prepared(c))),
}
# fmt: on
MODES = ('train', 'plan', 'compile')


def condition(word: str) -> Condition:
  """Returns what a word of `Option.counts` means: one of `CONDITIONS`, or a mode of the program."""
  return CONDITIONS.get(word) or Condition('--mode', f'the mode is {word}', lambda config: False)


def without_effect(
  config: config_dict.ConfigDict, given: Collection[str] = (), mode: str = 'train'
) -> dict[str, str]:
  """Returns the options that are set and do not count, with the word of where they would.

  What is off (0, False, empty) has no effect anyway. What a config file sets, and the command line
  sets another option against, is no mistake.

  Args:
    config: that is checked.
    given: names of options that the command line sets.
    mode: one of `MODES`.
  """
  found = {}
  for name, value in flatten(config).items():
    row = find_row(name)
    if not row or not value or (name not in given and value == row.default):
      continue
    failing = [w for w in row.counts.split() if w != mode and not condition(w).holds(config)]
    if failing and (name in given or not _is_given(condition(failing[0]).by, given)):
      found[name] = failing[0]
  return found


def _is_given(name: str, given: Collection[str]) -> bool:
  return any(f'{each}.'.startswith(f'{name}.') for each in given)


def tell_of_no_effect(
  config: config_dict.ConfigDict, given: Collection[str] = (), mode: str = 'train'
) -> None:
  """Warns of each of `without_effect`: name, value, and why."""
  found = without_effect(config, given, mode)
  values = {**os.environ, **flatten(config), '--mode': mode}
  for word in dict.fromkeys(found.values()):
    by, meaning, _ = condition(word)
    names = [name for name in found if found[name] == word]
    has, it_counts = ('has', 'it counts') if len(names) == 1 else ('have', 'they count')
    logging.warning(
      '%s %s no effect%s: %s where %s.',
      ', '.join(f'{name}={values[name]!r}' for name in names),
      has,
      f', as {by} is {values[by]!r}' if by in values else '',
      it_counts,
      meaning,
    )
