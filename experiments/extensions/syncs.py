"""What each way of sending costs and saves: loss, bytes, time of a sync and memory, at one K_x.

  python -m experiments.extensions.syncs

DES-LOC with the paper's multiples (K_u = 3 K_x, K_v = 6 K_x), and operators of `--config.sync.*` for the
parameters, for the moments, and for both. Second moments, which topk, ef21 and econtrol
could make negative, go in int4 beside those. Nothing is tuned for any operator.

Bytes are the ledger's, of what is encoded. The payload is what one worker contributes. What it sends
around a ring depends on the number of workers W for topk alone, whose messages each worker gets of
every other one: W/2 times as much of the mean's as of its payload.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import math
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.logs.metrics import format_bytes
from desloc_jax.logs.workdir import CHECKPOINTS, CONFIG_FILE
from desloc_jax.optimizer.syncs import Context, make_sync, Memory, MEMORY_AXES, TAKE
from desloc_jax.plan import make_plan
from desloc_jax.programs.ledger import Ledger
from experiments import command, plots
from experiments.report import (
  above,
  Check,
  confidence_interval,
  grouped,
  mean_spread,
  Report,
  rows_of,
)
from experiments.runs import Result, Run
from experiments.scales import Scale

SIGNED = ('topk', 'ef21', 'econtrol')  # For second moments there is int4 instead.
PARAMS, MOMENTS, BOTH = 'parameters', 'moments', 'both'
QUANTITIES = {PARAMS: ('params',), MOMENTS: ('mu', 'nu'), BOTH: ('params', 'mu', 'nu')}
OPERATORS = {
  PARAMS: ('int8', 'int4', 'int2', 'topk', 'ef21', 'econtrol'),
  MOMENTS: ('int8', 'int4', 'topk'),
  BOTH: ('bf16', 'int8', 'int4', 'topk'),
}
MEAN = 'mean'
# By how many percent the loss may be above the mean's.
GOALS = {'int8': 0.5, 'int4': 1, 'topk': 3}
MEASURED = ('sync_s', 'memory_bytes')
NOTES = (
  'Bytes are of what is encoded. The payload is what one worker contributes: for quantised syncs its '
  'values, and the slice of the mean that it publishes, 1/W. Time is of one sync of all three '
  'quantities, of workers that share a device; memory is what a worker keeps from sync to sync.',
)
_CALLS = 20


def variants() -> dict[str, dict[str, str]]:
  """Returns the options of each variant, by its name."""
  of = lambda operator, q: 'int4' if q == 'nu' and operator in SIGNED else operator
  return {MEAN: {}} | {
    f'{operator}, {what}': {f'sync.{q}': of(operator, q) for q in quantities}
    for what, quantities in QUANTITIES.items()
    for operator in OPERATORS[what]
  }


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each variant and seed, all at the K_x of the high-frequency regime."""
  shared = {'method': 'desloc', 'periods.params': scale.fast, 'eval.every': 0}
  return scale.runs(
    {name: {**shared, **options} for name, options in variants().items()}, measure=measure
  )


def measure(workdir: pathlib.Path) -> dict[str, float]:
  """Returns the seconds of a sync of everything, and the bytes that a worker's syncs remember."""
  options = json.loads((workdir / CONFIG_FILE).read_text())
  checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=1)
  leaves = checkpoints.leaves(max(checkpoints.steps()))
  checkpoints.close()
  of = lambda prefix: [x for name, x in leaves.items() if name.startswith(f'optimizer.{prefix}.')]
  own, shared = (sum(x.size * x.dtype.itemsize for x in of(f'memory.{k}')) for k in Memory._fields)
  return {
    'sync_s': sync_seconds(options, of('params')),
    'memory_bytes': own / options['workers'] + shared,
  }


def sync_seconds(options: Mapping[str, Any], params: Sequence[jax.ShapeDtypeStruct]) -> float:
  """Returns the median seconds of a sync of all three quantities, of workers that share a device.

  Args:
    options: of the run, by dotted name.
    params: shapes of the parameters, [workers, ...]; the moments have the same.
  """
  taken = {name: options[f'sync.{name}'] for name in TAKE}
  syncs = {
    q: make_sync(options[f'sync.{q}'] or options['sync.moments'], q, **taken)
    for q in QUANTITIES[BOTH]
  }
  keys = jax.random.split(jax.random.key(0), len(params))
  values = [jax.random.uniform(k, x.shape, x.dtype) for k, x in zip(keys, params, strict=True)]
  reference = [x[0] for x in values]
  init = lambda: {q: sync.init(reference) for q, sync in syncs.items()}
  axes = dict.fromkeys(syncs, MEMORY_AXES)
  memories = jax.vmap(init, axis_size=options['workers'], out_axes=axes)()

  def of_worker(local, memories):
    context = Context('workers', None, jnp.int32(0))
    of = lambda q: (local, reference if q == 'params' else None, memories[q], context)
    return {q: sync.reduce(*of(q)) for q, sync in syncs.items()}

  everything = jax.vmap(
    of_worker, (0, axes), dict.fromkeys(syncs, (None, MEMORY_AXES)), axis_name='workers'
  )
  compiled = jax.jit(everything).lower(values, memories).compile()
  seconds = []
  for _ in range(_CALLS):
    begin = time.perf_counter()
    jax.block_until_ready(compiled(values, memories))
    seconds.append(time.perf_counter() - begin)
  return statistics.median(seconds)


@dataclasses.dataclass(frozen=True)
class Sent:
  """Bytes that a worker sends.

  Attributes:
    payload: of one sync of each of some quantities.
    ring: of the same, around a ring.
    run: in the whole run, around a ring.
  """

  payload: float
  ring: float
  run: float


def sent(run: Run, quantities: Sequence[str]) -> Sent:
  """Returns what a worker sends in a run, and in one sync of each of `quantities`."""
  ledger = _ledger(run)
  sizes = {q: ledger.bytes_per_sync[q] for q in quantities}
  return Sent(
    payload=sum(sizes.values()),
    ring=sum(ledger.ring_bytes(size, q) for q, size in sizes.items()),
    run=ledger.ring_bytes_after(ledger.syncs_in(run.last_step)),
  )


@functools.cache
def _ledger(run: Run) -> Ledger:
  return make_plan(run.config).ledgers[run.config.method]


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the table of operators."""
  groups = grouped(results)
  mean = groups[MEAN]
  table = [(
    'sync', 'validation loss', "above the mean's", 'payload of a sync', "of the mean's",
    'sent in a ring', "of the mean's", 'sent in the run', "of the mean's", 'time of a sync', 'memory',
  )]  # fmt: skip
  for name, group in groups.items():
    own, plain = (sent(g[0].run, _quantities(name)) for g in (group, mean))
    parts = [(getattr(own, f), getattr(plain, f)) for f in ('payload', 'ring', 'run')]
    measured = lambda key, group=group: statistics.median(_measured(group, key))
    table.append((
      name,
      mean_spread([result.loss for result in group]),
      '' if group is mean else _interval(above(group, mean)),
      *(cell for a, b in parts for cell in (format_bytes(a), _fraction(a / b))),
      f'{1e3 * measured("sync_s"):.1f} ms',
      format_bytes(measured('memory_bytes')),
    ))  # fmt: skip
  rows = [
    {**row, **{key: result.summary.get('measured', {}).get(key) for key in MEASURED}}
    for row, result in zip(rows_of(results), results, strict=True)
  ]
  steps, period = scale.config.steps, scale.fast
  title = f'Syncs: loss against bytes, K_x = {period}, {steps // period} syncs of the parameters'
  return Report(title, rows, table, _checks(groups), _figure(groups, title), NOTES)


def _quantities(variant: str) -> Sequence[str]:
  return QUANTITIES[BOTH if variant == MEAN else variant.partition(', ')[2]]


def _checks(groups: Mapping[str, Sequence[Result]]) -> list[Check]:
  mean = groups[MEAN]
  checks = [
    Check(
      f"{operator}, {what}: the loss is at most {percent:g}% above the mean's",
      above(groups[f'{operator}, {what}'], mean),
      at_most=percent,
      unit='%',
    )
    for operator, percent in GOALS.items()
    for what in QUANTITIES
  ]

  def part(variant: str, quantities: Sequence[str], of: str) -> list[float]:
    a, b = (getattr(sent(groups[v][0].run, quantities), of) for v in (variant, MEAN))
    return [a / b]

  for operator, whole in (('int8', 1 / 4), ('int4', 1 / 8)):
    checks.append(
      Check(
        f"{operator}, both: a sync sends {whole:g} of the mean's bytes, and up to a twentieth of that "
        'for scales and filled rows',
        part(f'{operator}, {BOTH}', QUANTITIES[BOTH], 'ring'),
        at_least=whole,
        at_most=1.05 * whole,
        exact=True,
      )
    )
  checks.append(
    Check(
      "topk, parameters: the payload is under 1/100 of the mean's",
      part(f'topk, {PARAMS}', QUANTITIES[PARAMS], 'payload'),
      at_most=0.01,
      exact=True,
    )
  )
  return checks


def _figure(groups: Mapping[str, Sequence[Result]], title: str):
  figure, panels = plots.panels(len(QUANTITIES), f'{title} (mean and range of seeds)', sharey=True)
  for panel, what in zip(panels, QUANTITIES, strict=True):
    panel.axhline(0, color='black')
    for operator in OPERATORS[what]:
      name = f'{operator}, {what}'
      parts = [sent(groups[n][0].run, QUANTITIES[what]).ring for n in (name, MEAN)]
      values = [x for x in above(groups[name], groups[MEAN]) if math.isfinite(x)]
      if values:
        centre = statistics.mean(values)
        spread = [[centre - min(values)], [max(values) - centre]]
        panel.errorbar(parts[0] / parts[1], centre, spread, fmt='o', capsize=3, label=operator)
    panel.set(title=what, xlabel="bytes of a sync around a ring, of the mean's")
    plots.log_scale(panel)
    panel.legend(fontsize='small')
  panels[0].set_ylabel("loss above the mean's (%)")
  return figure


def _interval(values: Sequence[float]) -> str:
  """Returns a mean in percent with its confidence interval."""
  if not all(map(math.isfinite, values)):
    return 'diverged'
  mean, between = f'{statistics.mean(values):+.2f}%', ''
  if len(values) > 1:
    between = ' ({:+.2f} to {:+.2f})'.format(*confidence_interval(values))
  return mean + between


def _fraction(part: float) -> str:
  return '1' if part == 1 else f'1/{1 / part:.3g}'


def _measured(group: Sequence[Result], key: str) -> list[float]:
  return [r.summary['measured'][key] for r in group if 'measured' in r.summary] or [math.nan]


if __name__ == '__main__':
  command.main(sys.modules[__name__])
