"""What may differ between a run and the one whose checkpoint it goes on from."""

from collections.abc import Mapping

from ml_collections import config_dict

from desloc_jax.errors import UserError
from desloc_jax.options.table import ALLOWABLE, default_config, find_row
from desloc_jax.options.values import flatten

# What runs did that did not know an option yet, where that is not its default now.
_BEFORE_IT_CAME = {'moment_guard': False}
# Defaults of before that are unset now: a method's own, which are the same.
_UNSET_SINCE = {'outer.learning_rate': 0.7, 'outer.momentum': 0.9, 'outer.nesterov': True}


def changed_options(config: config_dict.ConfigDict, before: Mapping[str, object]) -> dict[str, str]:
  """Returns the options that differ from those of a checkpoint's run, with both values.

  Options that do not change what is computed are left out, and names of data: see `data_changes`.

  Args:
    config: of this run.
    before: options by dotted name.

  Raises:
    UserError: one differs that neither `restore.allow` nor a change of `workers` permits.
  """
  now = flatten(config)
  # Nobody could choose these then: they are changed without asking, and said.
  come_since = _BEFORE_IT_CAME.keys() - before.keys()
  # Any other option that the run did not know yet was what its default is now.
  defaults = {
    n: v for n, v in flatten(default_config()).items() if not n.startswith('data.sources.')
  }
  before = defaults | _BEFORE_IT_CAME | dict(before)
  for name, default in _UNSET_SINCE.items():
    if now.get(name) is None and before[name] == default:
      before[name] = None
  changed = {
    name: f'{name} (was {before.get(name)!r}, is {now.get(name)!r})'
    for name in dict.fromkeys([*now, *before])
    if before.get(name) != now.get(name) and not {'always', 'content'} & set(restart_words(name))
  }
  permitted = {*allowed_words(config), *(['workers'] if 'workers' in changed else [])}
  refused = [
    name for name in changed if name not in come_since and not permitted & set(restart_words(name))
  ]
  if refused:
    # The first word of a row permits least.
    words = [word for name in refused for word in restart_words(name)[:1] if word in ALLOWABLE]
    each = len(words) == len(refused)
    hint = (
      f', or permit it by --config.restore.allow={",".join(dict.fromkeys(words))}' if each else ''
    )
    raise UserError(
      f'the workdir holds a run of another config: {", ".join(changed[name] for name in refused)}. '
      f'Use another --workdir, or the config that it was made with{hint}.'
    )
  return changed


def restart_words(name: str) -> list[str]:
  """Returns the words of when a restart may change an option; none if it is not known any more."""
  row = find_row(name)
  return row.restart.split() if row else []


def allowed_words(config: config_dict.ConfigDict) -> list[str]:
  """Returns the parts of `restore.allow`."""
  return [word for word in map(str.strip, config.restore.allow.split(',')) if word]
