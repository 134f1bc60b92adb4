"""The ledger: what a step sends between workers, when, and how many bytes, read off its jaxpr.

`workers` is a manual mesh axis, so every exchange between workers is an explicit primitive of the
jaxpr. The ledger walks it: an exchange must sit in a branch of a conditional, under the name scope
of the quantity that it averages. Payload bytes are those of the operands, once: what one worker
contributes, in the dtype in which it travels. Of the branches of a conditional the largest counts.
Ring bytes are what each worker sends where all form a ring, by primitive (`BYTES_SENT`): 2(W-1)/W of the
payload of an all-reduce, W-1 times that of a gather.

That is what is written. XLA for CPUs sends some types wider (`WIDENED_ON_CPUS`), which counts where
the platform is given; `hlo.sync_bytes` reads what a compiled program sends.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import math
import re

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import optax

from desloc_jax.optimizer.averaging import AxisName
from desloc_jax.optimizer.state import check_state, DeslocState
from desloc_jax.optimizer.sync_periods import falls_on, Periods
from desloc_jax.optimizer.worker_step.frame import HEALTH, SYNC_SCOPE

# Primitives that name a mesh axis and send nothing over it.
LOCAL_PRIMITIVES = frozenset({
  'axis_index', 'pvary', 'pcast', 'shard_map', 'preduced', 'vary_unreduced_cast_p',
  'reduced_vary_cast_p',
})  # fmt: skip
# Bits of a value on the wire, by dtype, where XLA for CPUs (JAX 0.10 to 0.12) has no collective of
# the dtype itself; any float of 8 bits or fewer is sent in 16.
WIDENED_ON_CPUS = {'bfloat16': 32, 'int4': 8, 'uint4': 8}
# What a worker sends for an operand of one byte, by primitive: W -> bytes. A ring passes on what it
# gets: a gather sends the operand of each worker to every other one.
BYTES_SENT = {
  'psum': lambda w: 2 * (w - 1) / w,
  'all_gather': lambda w: w - 1,
  'all_gather_invariant': lambda w: w - 1,
  'all_to_all': lambda w: (w - 1) / w,
  'reduce_scatter': lambda w: (w - 1) / w,
  'ppermute': lambda w: 1,
}
# Exchanged at every step, by design: the only quantity allowed outside a conditional.
EVERY_STEP = 'gradients'
_MOST_STEPS = 2**20  # That are looked at for the one in which most is sent.


class UnconditionalExchangeError(ValueError):
  """Something crosses the worker axis outside the conditionals of the syncs."""


@dataclasses.dataclass(frozen=True)
class Exchange:
  """One primitive that sends data between workers."""

  name: str | None  # The synced quantity, None outside any sync's name scope.
  primitive: str
  payload_bytes: int  # Of its operands, of one worker.
  conditional: bool  # In a branch of a conditional.

  def ring_bytes(self, workers: int) -> float:
    """Bytes that each of `workers` sends."""
    sent = BYTES_SENT.get(self.primitive, BYTES_SENT['psum'])  # pmax and others are all-reduces.
    return self.payload_bytes * sent(workers)


@dataclasses.dataclass(frozen=True)
class Ledger:
  """What one worker sends, per synced quantity.

  Attributes:
    workers: number of workers W.
    bytes_per_sync: payload bytes of one sync, by quantity.
    periods: steps between syncs, by quantity; infinite for what only a warm-up averages.
    ring_factors: bytes that a worker sends around a ring for a byte of payload, by quantity; of an
      all-reduce where there is none.
  """

  workers: int
  bytes_per_sync: Mapping[str, int]
  periods: Mapping[str, float]
  ring_factors: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def bytes_per_step(self) -> float:
    """Payload bytes per worker and step, averaged over a long run."""
    return sum(size / self.periods[name] for name, size in self.bytes_per_sync.items())

  def bytes_after(self, syncs: Mapping[str, int]) -> int:
    """Payload bytes per worker after that many syncs of each quantity."""
    return sum(size * syncs[name] for name, size in self.bytes_per_sync.items())

  def syncs_in(self, steps: int) -> dict[str, int]:
    """Number of syncs of each quantity in the first `steps` steps, averaging after the step."""
    return {name: int(steps // self.periods[name]) for name in self.bytes_per_sync}

  def ring_bytes(self, payload_bytes: float, name: str | None = None) -> float:
    """Bytes that each worker sends around a ring for a payload of `name`; None: of all-reduces."""
    return self.ring_factors.get(name, BYTES_SENT['psum'](self.workers)) * payload_bytes

  def ring_bytes_after(self, syncs: Mapping[str, int]) -> float:
    """Bytes that each worker sends around a ring in that many syncs of each quantity."""
    sizes = self.bytes_per_sync.items()
    return sum(self.ring_bytes(size * syncs[name], name) for name, size in sizes)

  @property
  def ring_bytes_per_step(self) -> float:
    """Bytes that each worker sends around a ring in a step, averaged over a long run."""
    sizes = self.bytes_per_sync.items()
    return sum(self.ring_bytes(size / self.periods[name], name) for name, size in sizes)

  def ring_bytes_by_step(self, steps: int) -> np.ndarray:
    """Bytes that each worker sends around a ring in each of the first `steps` steps: float64 [steps].

    Without a warm-up. What goes along with any average, as a health check's vote, is counted with it.
    """
    times, sent = np.arange(1, steps + 1), np.zeros(steps)
    for name, size in self.bytes_per_sync.items():
      if name != HEALTH and math.isfinite(self.periods[name]):
        sent += self.ring_bytes(size, name) * falls_on(self.periods[name], times)
    return sent + self.ring_bytes(self.bytes_per_sync.get(HEALTH, 0), HEALTH) * (sent > 0)

  @property
  def most_ring_bytes(self) -> float:
    """The most of them in a step."""
    return float(self.ring_bytes_by_step(self.cycle).max())

  @property
  def cycle(self) -> int:
    """Steps after which syncs fall together as before, or so many that no more are looked at."""
    periods = [int(period) for period in self.periods.values() if math.isfinite(period)]
    return min(math.lcm(*(max(period, 1) for period in periods)), _MOST_STEPS)


def read_ledger(
  jaxpr: core.ClosedJaxpr,
  periods: Periods,
  workers: int,
  axis_name: str = 'workers',
  platform: str | None = None,
) -> Ledger:
  """Returns the ledger of a step.

  Args:
    jaxpr: of the step, from `jax.make_jaxpr`, with `axis_name` a manual mesh axis in it.
    periods: steps between syncs of each quantity, None for never: numbers, not schedules.
    workers: number of workers W.
    axis_name: the mesh axis of the workers.
    platform: 'cpu', 'gpu' or 'tpu', whose compiler decides how wide a value is sent; None: as wide
      as it is.

  Raises:
    UnconditionalExchangeError: an exchange over `axis_name` is outside a conditional (other than
      the average of the gradients), is in no sync, or is in a loop of unknown length.
    ValueError: something is averaged that `periods` does not name.
  """
  totals: dict[str, int] = {}
  sent: dict[str, float] = {}
  for exchange in exchanges(jaxpr.jaxpr, axis_name, platform):
    allowed = exchange.conditional or exchange.name == EVERY_STEP
    if exchange.name not in (*periods, EVERY_STEP) and exchange.name is not None:
      raise ValueError(f'{exchange.name} is averaged, but periods has only {", ".join(periods)}.')
    if exchange.name is None or not allowed:
      raise UnconditionalExchangeError(
        f'{exchange.primitive} of {exchange.payload_bytes} bytes over {axis_name!r} '
        f'{"in" if exchange.conditional else "outside"} a conditional'
        f' ({exchange.name or "not part of a sync"}): every step would pay for it.'
      )
    size = exchange.payload_bytes if workers > 1 else 0  # One worker has nobody to send to.
    totals[exchange.name] = totals.get(exchange.name, 0) + size
    sent[exchange.name] = sent.get(exchange.name, 0.0) + exchange.ring_bytes(workers)
  known = {name: math.inf if period is None else period for name, period in periods.items()}
  known[EVERY_STEP] = 1
  periods = {name: period for name, period in known.items() if name in totals}
  all_reduce = BYTES_SENT['psum'](workers)
  factors = {name: sent[name] / totals[name] for name in periods if totals[name]}
  factors = {n: factor for n, factor in factors.items() if not math.isclose(factor, all_reduce)}
  return Ledger(workers, {name: totals[name] for name in periods}, periods, factors)


def transform_ledger(
  tx: optax.GradientTransformation,
  params: optax.Params,
  periods: Periods,
  workers: int,
  axis_name: AxisName = 'workers',
  platform: str | None = None,
) -> Ledger:
  """Returns the ledger of `tx.update` alone; nothing is compiled and no device is needed.

  Args:
    tx: a transformation over `axis_name`.
    params: its parameters, as arrays or shapes.
    periods: steps between syncs of each quantity, None for never.
    workers: number of workers W.
    axis_name: of the workers; of several axes the first one is taken for the network.
    platform: see `read_ledger`.
  """
  network, *others = (axis_name,) if isinstance(axis_name, str) else axis_name

  def update(grads, params):
    state = tx.init(params)
    if any(map(_is_desloc, jax.tree.leaves(state, is_leaf=_is_desloc))):
      check_state(state)
    return tx.update(grads, state, params)

  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  axes = [(network, workers), *((name, 1) for name in others)]
  jaxpr = jax.make_jaxpr(update, axis_env=axes)(shapes, shapes)
  return read_ledger(jaxpr, periods, workers, network, platform)


def _is_desloc(state) -> bool:
  return isinstance(state, DeslocState)


def exchanges(
  jaxpr: core.Jaxpr,
  axis_name: str,
  platform: str | None = None,
  conditional: bool = False,
  scope: str = '',
  times: int = 1,
) -> Iterator[Exchange]:
  """Yields every primitive under `jaxpr` that sends data over `axis_name`.

  Raises:
    UnconditionalExchangeError: one is in a while loop, whose length the jaxpr does not tell.
  """
  for eqn in jaxpr.eqns:
    inner_scope = f'{scope}/{eqn.source_info.name_stack}'
    primitive = eqn.primitive.name
    if _sends_over(eqn, axis_name):
      size = sum(_sent_bytes(v.aval, eqn, platform) for v in eqn.invars)
      yield Exchange(sync_name(inner_scope), primitive, times * size, conditional)
    is_conditional = conditional or primitive == 'cond'
    turns = times * _repeats(eqn, axis_name)
    inside = [
      list(exchanges(sub, axis_name, platform, is_conditional, inner_scope, turns))
      for sub in core.jaxprs_in_params(eqn.params)
    ]
    for exchange in _largest_branches(inside) if primitive == 'cond' else itertools.chain(*inside):
      if primitive == 'while':
        raise UnconditionalExchangeError(
          f'{exchange.primitive} sends over {axis_name!r} in a loop of unknown length.'
        )
      yield exchange


def _repeats(eqn: core.JaxprEqn, axis_name: str) -> int:
  """Returns how often a worker runs what is inside an equation."""
  if eqn.primitive.name == 'scan':
    return eqn.params['length']
  if eqn.primitive.name == 'shard_map':  # On each device of the worker, with its part.
    # Its name differs between versions of JAX.
    manual = eqn.params.get('newly_manual_axes', eqn.params.get('manual_axes', frozenset()))
    inner = manual - {axis_name}
    return math.prod(eqn.params['mesh'].shape[name] for name in inner)
  return 1


def _largest_branches(branches: Sequence[Sequence[Exchange]]) -> Iterator[Exchange]:
  """Yields of each quantity what the branch sends that sends the most of it: only one is taken."""
  for name in dict.fromkeys(exchange.name for branch in branches for exchange in branch):
    of_name = [[exchange for exchange in branch if exchange.name == name] for branch in branches]
    yield from max(of_name, key=lambda found: sum(exchange.payload_bytes for exchange in found))


def _sent_bytes(aval: jax.core.ShapedArray, eqn: core.JaxprEqn, platform: str | None) -> int:
  # A number among the axes is one of the array: that of replicas on a device, summed before.
  axes = eqn.params.get('axes', ())
  replicas = math.prod(aval.shape[axis] for axis in axes if isinstance(axis, int))
  return math.ceil(aval.size // max(1, replicas) * _sent_bits(aval.dtype, platform) / 8)


def _sent_bits(dtype, platform: str | None) -> int:
  bits = 8 * dtype.itemsize
  if jnp.issubdtype(dtype, jnp.integer):
    bits = jnp.iinfo(dtype).bits
  elif jnp.issubdtype(dtype, jnp.floating):
    bits = jnp.finfo(dtype).bits
  if platform != 'cpu':
    return bits
  if jnp.issubdtype(dtype, jnp.floating):
    bits = max(bits, 16)
  return WIDENED_ON_CPUS.get(dtype.name, bits)


def _sends_over(eqn: core.JaxprEqn, axis_name: str) -> bool:
  # What ends an exchange that another primitive began sends no more.
  if eqn.primitive.name in LOCAL_PRIMITIVES or eqn.primitive.name.endswith('_done'):
    return False
  axes = eqn.params.get('axes', eqn.params.get('axis_name', ()))
  return axis_name in (axes if isinstance(axes, tuple | list | set | frozenset) else (axes,))


def sync_name(scope: str) -> str | None:
  """Returns the quantity whose name scope is in a stack of them."""
  match = re.search(rf'{SYNC_SCOPE}([^/()]+)', scope)
  return match.group(1) if match else None
