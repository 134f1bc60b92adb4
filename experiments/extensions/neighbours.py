"""The neighbours of DES-LOC beside it: loss, bytes, the most that a step sends, and memory.

  python -m experiments.extensions.neighbours --seeds=3

Each preset of the table of methods as it is, at one K_x and with the run's learning rate, but for what
`VARIANTS` says: there are few outer steps, for which their papers' momentum is too much, averages that land
a round late need a small outer step, and Muon and normalised steps have rates of their own. Nothing is tuned
beyond that.
"""

from collections.abc import Mapping, Sequence
import functools
import statistics
import sys

import numpy as np

from desloc_jax.logs.metrics import format_bytes
from desloc_jax.plan import make_plan, Plan
from experiments import command, plots
from experiments.report import above, Check, grouped, mean_spread, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import Options, Scale

FEW_OUTER_STEPS = {'outer.momentum': 0.5}
# An average that lands a round late overshoots where a worker's round already gets most of the way:
# that swings, and grows from a gain (rate over 1 - momentum) of 1 / (1 - 1/W) on.
LATE = {'outer.momentum': 0.0, 'outer.learning_rate': 0.4}
VARIANTS: dict[str, Options] = {
  'ddp': {},
  'desloc': {},
  'local_sgd': {},
  'diloco': FEW_OUTER_STEPS,
  'edit': FEW_OUTER_STEPS,
  'muloco': {**FEW_OUTER_STEPS, 'inner.learning_rate': 2e-2},
  'sparseloco': {},
  'byz_nsgdm': {'inner.learning_rate': 0.1, 'outer.learning_rate': 2.0},
  'gossip': {},
  'merge_once': {},
  'scaffold': {},
  'co2': LATE,
  'eager': LATE,
  'streaming_diloco': FEW_OUTER_STEPS,
}
NOTES = (
  'Bytes are what a worker sends around a ring, and gossip to its neighbour, the health check among '
  'them. The state is what a worker holds between steps: parameters, consensus, moments, and what syncs '
  'remember or have in flight.',
)
# What a device holds of a step besides the state.
MARKERS = 'os^vD<>pP*XdH8'  # Of methods in the plot, as colours come again.
SHOWN = 6  # Periods in the plot of bytes over steps: K_v.
PASSING = ('gradients', 'activations', 'weights in use')


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each method and seed."""
  shared = {'periods.params': scale.fast, 'eval.every': 0, 'plan.devices_per_worker': 1}
  return scale.runs(
    {name: {'method': name, **shared, **options} for name, options in VARIANTS.items()}
  )


@functools.cache
def _plan(run: Run) -> Plan:
  return make_plan(run.config)


def bytes_by_step(run: Run) -> np.ndarray:
  """Returns what a worker sends around a ring in each step, what it sends for the health check too."""
  return _plan(run).ledgers[run.config.method].ring_bytes_by_step(run.last_step)


def state_bytes(run: Run) -> float:
  """Returns what a worker holds between steps."""
  return sum(size for name, size in _plan(run).memory.items() if name not in PASSING)


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the table of methods."""
  groups = grouped(results)
  table = [(
    'method', 'validation loss', "above DDP's", 'sent in the run', 'sent in a mean step',
    'most in a step', 'state of a worker', 'of the parameters',
  )]  # fmt: skip
  for name, group in groups.items():
    run = group[0].run
    sent, state = bytes_by_step(run), state_bytes(run)
    table.append((
      name,
      mean_spread([result.loss for result in group], 3),
      f'{statistics.mean(above(group, groups["ddp"])):+.1f}%',
      format_bytes(sum(sent)),
      format_bytes(sum(sent) / len(sent)),
      format_bytes(max(sent)),
      format_bytes(state),
      f'{state / _plan(run).memory["parameters"]:.2f}x',
    ))  # fmt: skip
  title = f'Neighbours: K_x = {scale.fast}, {scale.config.steps} steps'
  return Report(
    title, rows_of(results), table, _checks(groups), _figure(groups, scale, title), NOTES
  )


def _checks(groups: Mapping[str, Sequence[Result]]) -> list[Check]:
  beside_diloco = [
    Check(
      f"{name}'s loss is at most 2% above DiLoCo's",
      above(groups[name], groups['diloco']),
      at_most=2,
      unit='%',
    )
    for name in ('sparseloco', 'streaming_diloco', 'co2', 'eager')
  ]
  return [
    *beside_diloco,
    Check(
      "gossip's loss is at most 2% above Local SGD's",
      above(groups['gossip'], groups['local_sgd']),
      at_most=2,
      unit='%',
    ),
    Check('runs that diverge', [sum(bool(r.diverged) for g in groups.values() for r in g)],
          at_most=0, exact=True),
  ]  # fmt: skip


def _figure(groups: Mapping[str, Sequence[Result]], scale: Scale, title: str):
  figure, (by_bytes, by_step) = plots.panels(2, title, 7)
  for (name, group), marker in zip(groups.items(), MARKERS, strict=False):
    sent, losses = sum(bytes_by_step(group[0].run)), [r.loss for r in group if not r.diverged]
    if losses:
      by_bytes.plot(sent / 1e6, statistics.mean(losses), marker, label=name, **plots.style(name))
  by_bytes.set(xlabel='sent by each worker (MB)', ylabel=plots.LOSS)
  plots.log_scale(by_bytes)
  by_bytes.legend(ncols=2, fontsize='small')
  for name in ('desloc', 'diloco', 'gossip', 'streaming_diloco'):
    sent = bytes_by_step(groups[name][0].run)[: SHOWN * scale.fast]
    by_step.step(range(1, len(sent) + 1), [x / 1e6 for x in sent], where='mid', label=name)
  by_step.set(xlabel='step', ylabel='sent by each worker in a step (MB)')
  by_step.legend()
  return figure


if __name__ == '__main__':
  command.main(sys.modules[__name__])
