"""From a configuration to the parts of the model that are averaged by themselves."""

from collections.abc import Mapping

from ml_collections import config_dict
import optax

from desloc_jax.errors import UserError
from desloc_jax.optimizer.fragments import cut, Fragment
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.optimizer.sync_periods import Periods
from desloc_jax.options.groups import parse_groups
from desloc_jax.options.values import with_presets


def make_fragments(
  config: config_dict.ConfigDict, params_like: optax.Params, periods: Periods
) -> dict[str, Fragment]:
  """Returns the fragments of a run by name; none where all is averaged as one.

  A group's moments have periods that are as many times longer as that of its parameters is.

  Raises:
    UserError: there are more than the model has rows or K_x steps, a group has no array or one that
      another has, or something is set that a part cannot have.
  """
  parts = with_presets(config, 'sync')['fragments'] or 1
  groups = parse_groups(config.periods.groups)
  if METHODS[config.method].gradients or (parts == 1 and not groups):
    return {}
  option = 'sync.fragments' if parts > 1 else 'periods.groups'
  value = parts if parts > 1 else repr(config.periods.groups)
  if reason := _why_whole(config, periods):
    raise UserError(f'{option} is {value}, but {reason}; expected {"1" if parts > 1 else "none"}.')
  if periods['params'] is not None and periods['params'] < parts:
    raise UserError(
      f'sync.fragments is {parts}, but there are {periods["params"]} steps (periods.params) for one '
      f'after another; expected at most {periods["params"]}.'
    )
  try:
    return cut(params_like, parts, config.sync.pattern, _with_moments(groups, periods))
  except ValueError as error:
    raise UserError(f'{option} is {value}: {error}') from error


def _why_whole(config: config_dict.ConfigDict, periods: Periods) -> str:
  """Returns why all must be averaged as one, '' if it need not."""
  method, syncs = METHODS[config.method], with_presets(config, 'sync')
  if method.merges_once:
    return f'method {config.method!r} averages once'
  if method.control:
    return f'method {config.method!r} corrects gradients by the mean of all since one average'
  if method.states == 'reset':
    return f'method {config.method!r} resets moments where all parameters are averaged'
  if gossiping := [n for n in ('params', 'moments', *periods) if syncs.get(n) == 'gossip']:
    return f'sync.{gossiping[0]} is gossip, by which workers do not agree'
  if config.period_growth != 1:
    return f'period_growth is {config.period_growth:g}, and what changes has no phase'
  if config.sync_end_steps:
    return f'sync_end_steps is {config.sync_end_steps}, and what changes has no phase'
  return ''


def _with_moments(
  groups: Mapping[str, tuple[str, int]], periods: Periods
) -> dict[str, tuple[str, Periods]]:
  base = periods['params']
  return {
    name: (
      paths,
      {f: max(1, round(p * steps / base)) for f, p in periods.items() if p is not None and base},
    )
    for name, (paths, steps) in groups.items()
  }
