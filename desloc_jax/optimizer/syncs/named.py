"""Syncs by name, for options."""

from collections.abc import Callable, Mapping

from desloc_jax.optimizer.control_variates import CONTROL
from desloc_jax.optimizer.syncs.anchored import anchored
from desloc_jax.optimizer.syncs.byzantine.clip_to_median import clip_to_median
from desloc_jax.optimizer.syncs.byzantine.geometric_median import geometric_median
from desloc_jax.optimizer.syncs.byzantine.krum import krum
from desloc_jax.optimizer.syncs.byzantine.of_neighbours import of_neighbours
from desloc_jax.optimizer.syncs.byzantine.trimmed_mean import median, trimmed_mean
from desloc_jax.optimizer.syncs.compressed.channels import in_slices, to_everybody
from desloc_jax.optimizer.syncs.compressed.ef21 import econtrol, ef21
from desloc_jax.optimizer.syncs.compressed.encodings import uniform
from desloc_jax.optimizer.syncs.compressed.quantised import encoding, quantised
from desloc_jax.optimizer.syncs.compressed.topk import largest, topk
from desloc_jax.optimizer.syncs.control import control
from desloc_jax.optimizer.syncs.edit import edit
from desloc_jax.optimizer.syncs.exempt import exempt as exempt_by_path
from desloc_jax.optimizer.syncs.gossip import gossip
from desloc_jax.optimizer.syncs.mean import mean
from desloc_jax.optimizer.syncs.sync import Sync

BITS = {'bf16': 16, 'int8': 8, 'int4': 4, 'int2': 2}
# Averages that bear workers that lie: all take how many may, and some must be told.
ROBUST: Mapping[str, Callable[..., Sync]] = {
  'trimmed_mean': trimmed_mean,
  'median': median,
  'geometric_median': geometric_median,
  'krum': krum,
  'clip_to_median': clip_to_median,
}
# Means of all that is sent, whatever it is.
SUMS = ('mean', *BITS, 'ef21', 'econtrol')
NEED_NUMBER = ('trimmed_mean', 'krum')
SYNCS = ('mean', *BITS, 'topk', 'ef21', 'econtrol', *ROBUST, 'edit', 'gossip')
# Which syncs take an argument of `make_sync`.
TAKE = {
  'block': ('int8', 'int4', 'int2', 'ef21', 'econtrol'),
  'keep': ('topk',),
  'chunk': ('topk',),
  'average': ('topk',),
  'decay': (*BITS, 'topk'),
  'eta': ('econtrol',),
  'byzantine': (*ROBUST, 'edit'),
  'neighbours': (*ROBUST, 'edit'),
  'exempt': tuple(name for name in SYNCS if name not in ('mean', 'gossip')),
}
# State fields that are never negative: encoded by their logarithms, and by nothing with signs.
POSITIVE = frozenset({'nu'})


def make_sync(
  name: str,
  quantity: str,
  *,
  block: int = 256,
  keep: int = 64,
  chunk: int = 4096,
  average: str = 'senders',
  decay: float | None = None,
  eta: float = 0.1,
  byzantine: int | None = None,
  neighbours: bool | None = False,
  exempt: str = '',
) -> Sync:
  """Returns the sync `name` for a quantity: 'params', or a state field.

  Args:
    name: one of `SYNCS`; ef21 and econtrol send 4 bits.
    quantity: what it is for.
    block: numbers that share a scale.
    keep: of a chunk, in topk.
    chunk: of topk.
    average: of topk, over the 'senders' of a coordinate or over 'all'.
    decay: of the memory of topk and of what sends fewer bits; None: the sync's own.
    eta: of econtrol.
    byzantine: of robust averages, how many workers may lie; None: not said.
    neighbours: of robust averages, whether to mix nearest neighbours first.
    exempt: a regular expression of the paths of arrays that are averaged by the mean; empty:
      none.

  Raises:
    ValueError: the name is unknown, an argument out of range, or the sync is not for the quantity.
  """
  if quantity == CONTROL:
    return _control(name, block, keep, chunk, average)
  memory = {} if decay is None else {'decay': decay}
  if name in TAKE['byzantine'] and byzantine is None and (neighbours or name in NEED_NUMBER):
    which = 'nearest neighbours need' if neighbours else f'{name} needs'
    raise ValueError(f'{which} to know how many workers may lie: set sync.byzantine.')
  if name in ('mean', 'gossip'):
    return mean() if name == 'mean' else gossip()
  if name in BITS:
    sync = quantised(BITS[name], block, **memory, logarithms=quantity in POSITIVE)
  elif name in ROBUST:
    sync = ROBUST[name](byzantine or 0, bool(neighbours), positive=quantity in POSITIVE)
  elif name not in SYNCS:
    raise ValueError(f'there is no sync {name!r}; expected one of {", ".join(SYNCS)}.')
  elif name == 'edit' and quantity != 'params':
    raise ValueError(f'edit weighs differences from the consensus, and {quantity} has none.')
  elif quantity in POSITIVE:
    fitting = ', '.join(('mean', 'gossip', *BITS, *ROBUST))
    raise ValueError(f'{name} could make {quantity} negative; for it there are {fitting}.')
  elif name == 'edit':
    sync = of_neighbours(edit(), byzantine or 0) if neighbours else edit()
  elif name == 'topk':
    sync = topk(keep, chunk, average=average, **memory)
    sync = sync if quantity == 'params' else anchored(sync)
  else:
    channel = in_slices(uniform(4, block))
    sync = ef21(channel) if name == 'ef21' else econtrol(channel, eta)
  return exempt_by_path(sync, exempt) if exempt else sync


def _control(name: str, block: int, keep: int, chunk: int, average: str) -> Sync:
  """Returns the sync `name` of control variates."""
  if name in BITS:
    return control(in_slices(encoding(BITS[name], block)))
  if name not in ('mean', 'topk'):
    raise ValueError(
      f'{name} cannot send control variates; for them there are mean, {", ".join(BITS)}, topk.'
    )
  if name == 'mean':
    return control()
  return control(to_everybody(largest(keep, chunk), senders_only=average == 'senders'))
