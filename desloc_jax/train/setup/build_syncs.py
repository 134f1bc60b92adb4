"""From a configuration to what is sent of each quantity, and to who lies in it."""

from collections.abc import Mapping

from absl import logging
import jax
from ml_collections import config_dict

from desloc_jax.errors import UserError
from desloc_jax.optimizer.control_variates import CONTROL
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.optimizer.state_fields import MODELS
from desloc_jax.optimizer.sync_periods import Periods
from desloc_jax.optimizer.syncs import (
  attacked,
  by_tokens,
  check_byzantine,
  check_hypercube,
  fedau,
  fedstale,
  make_landing,
  make_sync,
  mean,
  POSITIVE,
  ROBUST,
  SUMS,
  Sync,
  TAKE,
)
from desloc_jax.options.table import default_config, FIELDS
from desloc_jax.options.values import with_presets
from desloc_jax.options.worker_failures import parse_attacks


def make_syncs(config: config_dict.ConfigDict, periods: Periods) -> dict[str, Sync]:
  """Returns the sync of each quantity that is averaged, but for those that are means.

  Raises:
    UserError: a sync does not fit its quantity, an option of none is set, or too many workers lie.
  """
  wanted = with_presets(config, 'sync')
  of_fields = {name: wanted[name] for name in ('params', *FIELDS)}
  averaged = [n for n, period in periods.items() if period is not None or config.sync_warmup_steps]
  chosen = {name: of_fields.get(name) or config.sync.moments for name in averaged}
  chosen |= {n: of_fields.get(n) or 'mean' for n in (*MODELS, CONTROL) if n in averaged}
  for name, sync in of_fields.items():
    if sync not in (None, 'mean') and name not in averaged:
      raise UserError(
        f'sync.{name} is {sync!r}, but method {config.method!r} with inner.name '
        f'{config.inner.name!r} does not average {name}; leave it unset.'
      )
  options = {name: wanted[name] for name in TAKE}
  for name in TAKE:
    takers = {*TAKE[name]} - (
      {'edit'} if name == 'byzantine' and not wanted['neighbours'] else set()
    )
    value, used = config.sync[name], takers & {*chosen.values()}
    if value != default_config().sync[name] and not used:
      raise UserError(
        f'sync.{name} is {value!r}, but nothing is averaged by what takes it: '
        f'{", ".join(TAKE[name])}.'
      )
  if chosen.get('params') == 'gossip':
    _check_gossip(config)
  syncs = {}
  for name, sync in chosen.items():
    try:
      if sync != 'mean' or name == CONTROL:
        syncs[name] = make_sync(sync, name, **options)
    except ValueError as error:
      source = name if of_fields.get(name) else 'moments'
      raise UserError(f'sync.{source} is {sync!r}: {error}') from error
  syncs |= _weighed(config, chosen, syncs)
  syncs |= _attacked(config, chosen, syncs)
  return syncs | _delayed(config, chosen, syncs)


def _delayed(
  config: config_dict.ConfigDict, chosen: Mapping[str, str], syncs: Mapping[str, Sync]
) -> dict[str, Sync]:
  """Returns the syncs that land later than they are sent, or beside the local value.

  Control variates do not.

  Raises:
    UserError: there is nobody to wait for, or nothing is agreed on that could land.
  """
  options = with_presets(config, 'sync')
  delay, land = options['delay'] or 0, options['land'] or 'keep'
  if not delay and land != 'mix':
    return {}
  if delay and config.workers == 1:
    raise UserError(
      f'sync.delay is {delay}, but one worker alone waits for nobody; expected sync.delay=0.'
    )
  if gossiping := [name for name, sync in chosen.items() if sync == 'gossip']:
    raise UserError(
      f'sync.{gossiping[0]} is gossip, whose mean of two is taken over at once; expected sync.delay=0, '
      'and sync.land not mix.'
    )
  found = {}
  for name in [name for name in chosen if name != CONTROL]:
    # A moment has no consensus of which a worker could apply its share.
    rule = 'keep' if land == 'eager' and name != 'params' else land
    landing = make_landing(rule, options['local_share'] or 0.0, name in POSITIVE)
    found[name] = syncs.get(name, mean())._replace(delay=delay, landing=landing)
  return found


def _check_gossip(config: config_dict.ConfigDict) -> None:
  """Raises UserError where the workers cannot gossip about parameters."""
  method = METHODS[config.method]
  if method.outer or method.merges_once:
    raise UserError(
      f'sync.params is gossip, but method {config.method!r} needs a consensus that all workers take '
      "over; expected method='gossip', or one that averages alone."
    )
  try:
    check_hypercube(config.workers)
  except ValueError as error:
    raise UserError(f'sync.params: {error}') from error


def _weighed(
  config: config_dict.ConfigDict, chosen: Mapping[str, str], syncs: Mapping[str, Sync]
) -> dict[str, Sync]:
  """Returns the syncs in which a worker counts by what it did before.

  Raises:
    UserError: there are none, or what the run has beside does not go with it.
  """
  who = config.sync.who
  if who == 'present':
    return {}
  if 'params' not in chosen:
    raise UserError(
      f'sync.who is {who!r}, but method {config.method!r} with periods.params='
      f'{config.periods.params} averages no parameters; leave it unset.'
    )
  if who == 'tokens' and config.health.check:
    raise UserError(
      'sync.who is tokens, but health.check is on, and leaves out who was away at all since the last '
      'average; expected health.check=False.'
    )
  if rule := {'fedau': fedau, 'tokens': by_tokens}.get(who):
    return {name: rule(syncs.get(name, mean())) for name in chosen}
  if config.worker_weights:
    raise UserError(
      'sync.who is fedstale, in which all workers count the same, but worker_weights is '
      f'{tuple(config.worker_weights)}; leave it unset, or take sync.who=fedau.'
    )
  if chosen['params'] not in SUMS:
    raise UserError(
      f'sync.who is fedstale, whose messages are parts of a sum, but sync.params is '
      f'{chosen["params"]!r}; expected one of {", ".join(SUMS)}.'
    )
  return {'params': fedstale(syncs.get('params', mean()))}


def _attacked(
  config: config_dict.ConfigDict, chosen: Mapping[str, str], syncs: Mapping[str, Sync]
) -> dict[str, Sync]:
  """Returns each sync with the workers that lie in it.

  Raises:
    UserError: more lie than a robust average was told of, or nothing is sent that they could change.
  """
  if (byzantine := with_presets(config, 'sync')['byzantine']) is not None:
    try:
      check_byzantine(byzantine, config.workers)
    except ValueError as error:
      raise UserError(f'sync.byzantine: {error}') from error
  plan = parse_attacks(config.failures.attack, config.workers)
  if not plan:
    return {}
  if not chosen:
    raise UserError(
      f'failures.attack is {config.failures.attack!r}, but method {config.method!r} has no average '
      'whose messages could be changed; take one that averages parameters.'
    )
  robust = [name for name, sync in chosen.items() if sync in ROBUST]
  if robust and byzantine is not None and len(plan) > byzantine:
    raise UserError(
      f'failures.attack lets {len(plan)} of {config.workers} workers lie, and sync.byzantine is {byzantine}: '
      f'sync.{robust[0]} bears no more; expected sync.byzantine={len(plan)} at least.'
    )
  plain = [name for name in chosen if name not in robust]
  logging.warning(
    '%d of %d workers lie: failures.attack is %s.%s',
    len(plan),
    config.workers,
    config.failures.attack,
    f' No average that bears it has {", ".join(plain)}.' if plain else '',
  )
  return {
    name: attacked(syncs.get(name, mean()), plan, config.seed + 1000 * i)
    for i, name in enumerate(chosen)
  }


def check_exemptions(config: config_dict.ConfigDict, tx, params_like) -> None:
  """Raises UserError if `sync.exempt` names no array."""
  if config.sync.exempt:
    try:
      jax.eval_shape(tx.init, params_like)
    except ValueError as error:
      raise UserError(f'sync.exempt: {error}') from error
