"""A compiled step as text."""

from collections.abc import Iterable
import dataclasses

from desloc_jax.logs.metrics import format_bytes
from desloc_jax.optimizer.worker_step.frame import RESTARTS
from desloc_jax.options.batch import batch_of
from desloc_jax.options.topology import CHIPS
from desloc_jax.plan.compile import CompiledStep
from desloc_jax.programs.hlo import Collective
from desloc_jax.programs.ledger import sync_name
from desloc_jax.tables import align

INSIDE, BETWEEN = 'inside a worker', 'between workers'
EVERY_STEP, ON_CONDITION = 'every step', 'on a condition'


@dataclasses.dataclass(frozen=True)
class Traffic:
  """The collectives of one kind.

  Attributes:
    where: `INSIDE` or `BETWEEN`.
    name: what is done.
    when: `EVERY_STEP` or `ON_CONDITION`.
    times: how often, in a step that takes all branches.
    sent_bytes: by a chip in such a step.
    unread: instructions in loops whose number of trips could not be read, counted once.
  """

  where: str
  name: str
  when: str
  times: int
  sent_bytes: float
  unread: int


def traffic(step: CompiledStep) -> list[Traffic]:
  """Returns what a chip sends, by where, what and when, the most first in each place."""
  groups: dict[tuple[str, str, str], list[Collective]] = {}
  for collective in step.collectives:
    key = (
      BETWEEN if step.crosses(collective) else INSIDE,
      _name(collective),
      ON_CONDITION if collective.conditional else EVERY_STEP,
    )
    groups.setdefault(key, []).append(collective)
  rows = [
    Traffic(
      *key,
      times=sum(c.times or 1 for c in group),
      sent_bytes=sum((c.times or 1) * c.sent_bytes for c in group),
      unread=sum(c.times is None for c in group),
    )
    for key, group in groups.items()
  ]
  return sorted(rows, key=lambda row: (row.where == BETWEEN, row.when, -row.sent_bytes))


def sent_bytes(rows: Iterable[Traffic], where: str, when: str, name: str = '') -> float:
  """Returns the bytes that a chip sends in a place, at a time, in collectives named `name...`."""
  return sum(
    row.sent_bytes
    for row in rows
    if row.where == where and row.when == when and row.name.startswith(name)
  )


def sync_bytes(step: CompiledStep) -> dict[str, tuple[float, float]]:
  """Returns what a chip sends around a ring in a sync, by quantity: by the ledger, and as compiled.

  Where each worker has chips of its own, which share its bytes.
  """
  ledger = step.ledger
  compiled = dict.fromkeys(ledger.bytes_per_sync, 0.0)
  for collective in step.collectives:
    if (name := sync_name(collective.source)) in compiled and step.crosses(collective):
      compiled[name] += (collective.times or 1) * collective.sent_bytes
  return {
    name: (ledger.ring_bytes(size, name) / step.chips, compiled[name])
    for name, size in ledger.bytes_per_sync.items()
  }


def compiled_text(step: CompiledStep) -> str:
  """Returns all of a compiled step: sizes, memory, collectives, arithmetic."""
  return '\n\n'.join([_sizes(step), _memory(step), _collectives(step), _syncs(step), _flops(step)])


def _name(collective: Collective) -> str:
  if collective.ring:
    return f'{collective.ring} in a ring, with a matmul'
  return collective.opcode


def _sizes(step: CompiledStep) -> str:
  config = step.config
  batch = batch_of(config)
  shared = f', {step.workers_a_row} on the same chips' if step.workers_a_row > 1 else ''
  return (
    f'{step.parameters:,} parameters on {step.topology}: {config.workers} workers of {step.chips} '
    f'chips each{shared}; {batch.micro_batches} micro-batches of {batch.sequences} sequences of '
    f'{config.seq_len:,} tokens. Compiled in {step.seconds:.0f} s.'
  )


def _memory(step: CompiledStep) -> str:
  parts, planned = sum(step.estimate.values()), sum(step.memory.values())
  rows = [('memory of a chip', 'bytes')]
  rows += [(name, format_bytes(size)) for name, size in step.estimate.items()]
  rows.append(('sum of the parts', format_bytes(parts)))
  rows += [(f"XLA's {name}", format_bytes(size)) for name, size in step.memory.items()]
  rows.append(("XLA's plan", format_bytes(planned)))
  verdict = 'It fits' if planned <= step.capacity else 'It does not fit'
  return (
    f"{align(rows)}\nXLA's plan is {planned / parts:.3f} of the sum of the parts and "
    f'{planned / step.capacity:.1%} of the {format_bytes(step.capacity)} that a program can use on '
    f'a {step.topology.chip}. {verdict}.'
  )


def _collectives(step: CompiledStep) -> str:
  found = traffic(step)
  rows = [('collectives', 'what', 'when', 'times', 'bytes sent')]
  rows += [
    (row.where, row.name, row.when, f'{row.times:,}', format_bytes(row.sent_bytes)) for row in found
  ]
  note = (
    'Of one chip, in a step that takes every branch; loops are counted with their trips, and each '
    'collective as what a chip sends where its group is a ring.'
  )
  if unread := sum(row.unread for row in found):
    note += f' {unread} are in loops whose number of trips cannot be read: counted once.'
  if amiss := sent_bytes(found, BETWEEN, EVERY_STEP):
    note += f' Every step sends {format_bytes(amiss)} between workers.'
  return f'{align(rows)}\n{note}'


def _syncs(step: CompiledStep) -> str:
  rows = [('sync', 'bytes by the ledger', 'as compiled')]
  for name, sizes in sync_bytes(step).items():
    rows.append((name, *map(format_bytes, sizes)))
  return f'{align(rows)}\nOf one chip, once; {RESTARTS} only where a worker restarts.'


def _flops(step: CompiledStep) -> str:
  peak = CHIPS[step.topology.chip].peak_tflops * 1e12
  return (
    f'FLOPs of a chip and step: {step.model_flops:.4g} of the model, at least '
    f'{step.model_flops / peak:.3f} s at {peak / 1e12:g} TFLOP/s; {step.xla_flops:.4g} by XLA, which '
    'counts the body of a loop once.'
  )
