"""What may differ between a run and the one whose checkpoint it goes on from."""

from collections.abc import Mapping
import re

from ml_collections import config_dict

from desloc_jax.errors import UserError
from desloc_jax.options.table import ALLOWABLE, default_config, flatten

# What may differ between the runs that share a workdir: nothing here changes what is computed (a
# mesh and a loss chunk change the order of sums, and so the last bits).
RESUMABLE = (
  'stop_at',
  'log_every',
  'mesh.',
  'eval.',
  'checkpoint.',
  'restore.',
  'processes.',
  'model.loss_chunk',
  'plan.',
  'topology',
  'data.verify',
  'compilation.',
)
# Names of data, which is compared by its content.
BY_CONTENT = re.compile(r'data\.(tokenizer|validation_fraction|sources\..*\.(path|where))')
# What may differ where the number of workers does, which always may.
FOLLOW_WORKERS = ('workers', 'worker_weights', 'accumulation', 'failures.away')


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
  # An option that the run did not know yet was what its default is now.
  defaults = {
    n: v for n, v in flatten(default_config()).items() if not n.startswith('data.sources.')
  }
  before = defaults | dict(before)
  changed = {
    name: f'{name} (was {before.get(name)!r}, is {now.get(name)!r})'
    for name in dict.fromkeys([*now, *before])
    if before.get(name) != now.get(name)
    and not name.startswith(RESUMABLE)
    and not BY_CONTENT.fullmatch(name)
  }
  permitted = [prefix for name in allowed_names(config) for prefix in ALLOWABLE[name]]
  follows_workers = lambda name: name in FOLLOW_WORKERS or name.endswith('.worker_weights')
  refused = [
    name
    for name in changed
    if not name.startswith(tuple(permitted))
    and not ('workers' in changed and follows_workers(name))
  ]
  if refused:
    groups = [g for g, options in ALLOWABLE.items() if any(n.startswith(options) for n in refused)]
    hint = f', or permit it by --config.restore.allow={",".join(groups)}' if groups else ''
    raise UserError(
      f'the workdir holds a run of another config: {", ".join(changed[name] for name in refused)}. '
      f'Use another --workdir, or the config that it was made with{hint}.'
    )
  return changed


def allowed_names(config: config_dict.ConfigDict) -> list[str]:
  """Returns the parts of `restore.allow`."""
  return [name for name in map(str.strip, config.restore.allow.split(',')) if name]
