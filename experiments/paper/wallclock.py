"""Time on the clock: the paper's days and what explains them, and the planner against a real wire.

  python -m experiments.paper.wallclock

Nothing is trained. Days against bandwidth come from a fit to the paper's days at 100 Gb/s
(paper_days.py). What the planner's step time is worth, and what DES-LOC costs on a slow link, is
read from wire_time.csv and wire_overhead.csv in experiments/results: step times of processes with
throttled links between them, which `python -m experiments.systems.wire` measured.
"""

from collections.abc import Mapping, Sequence
import sys
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from configs import gpt
from desloc_jax.errors import UserError
from desloc_jax.plan import Plan
from desloc_jax.tables import align
from experiments import command, plots
from experiments.paper.paper_days import (
  average_seconds,
  devices,
  Fit,
  fits_by_share,
  largest,
  one_setting,
  PAPER_BATCH,
  PAPER_DAYS,
  PAPER_GBPS,
  plan_of,
  residuals,
  ROUNDING,
  SHAPES,
  TOKENS_PER_PARAMETER,
)
from experiments.report import Check, Report
from experiments.runs import Result, Run
from experiments.scales import Scale
from experiments.systems.wire import claims as wire_checks, table_files
from experiments.systems.wire.claims import throttled
from experiments.systems.wire.results import TimeRow

GBPS = 10 ** np.linspace(0, 3, 31)


def runs(scale: Scale) -> list[Run]:
  """Returns no runs: nothing is trained."""
  del scale
  return []


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the fits to the paper's days and what they mean."""
  del results, scale
  plans = {size: plan_of(size) for size in SHAPES}
  by_share = fits_by_share(plans)
  error = {share: largest(residuals(fits, plans)) for share, fits in by_share.items()}
  best = min(error, key=error.get)
  fitting = [share for share in error if error[share] < ROUNDING]
  fits = by_share[best]
  batch, count, shared = one_setting(fits, plans)
  table = [('model', 'method', 'paper', 'nothing hidden', f'{best:.2f} hidden', 'one setting')]
  errors = [residuals(each, plans) for each in (by_share[0.0], fits, shared)]
  for size, method in errors[0]:
    days = PAPER_DAYS[size][method]
    table.append((size, method, f'{days:.2f}', *(f'{e[size, method]:+.3f}' for e in errors)))
  notes = [
    'Days of the paper, and of each fit less those.',
    f'Hidden: the share of arithmetic behind which DDP averages gradients. From {min(fitting):.2f} to '
    f'{max(fitting):.2f} all nine are within rounding.'
    if fitting
    else 'No share of arithmetic that DDP hides behind fits all nine within rounding.',
    f'One setting: {TOKENS_PER_PARAMETER} tokens a parameter, batches of {batch:,.0f} tokens and '
    f'{count:.1f} H100s at an MFU of 0.4 for all three.',
    f'```\n{align(explanations(fits, plans))}\n```',
    f'The {best:.2f} fit, given {gpt.get_config("1b").workers} workers that average float32 over '
    f"{PAPER_GBPS:g} Gb/s each: H100s at an MFU of 0.4, if a batch is the paper's 2.1M tokens "
    f'or else if a run is {TOKENS_PER_PARAMETER} tokens a parameter.',
  ]
  claim = "the best fit's largest error in days, of nine, is within the paper's rounding"
  time, overhead = table_files.read('time'), table_files.read('overhead')
  if not time:
    raise UserError(
      'there are no times of a wire; python -m experiments.systems.wire measures them.'
    )
  checks = [Check(claim, [error[best]], at_most=ROUNDING, unit=' days', exact=True)]
  checks += wire_checks.checks(time, overhead)
  title = "The paper's days, K_x = 256, fitted at 100 Gb/s, and the planner against a wire"
  return Report(title, rows(fits, plans), table, checks, plot(fits, plans, throttled(time)), notes)


def explanations(fits: Mapping[str, Fit], plans: Mapping[str, Plan]) -> list[tuple[str, ...]]:
  """Returns what each fit means under two assumptions on tokens, as rows of a table."""
  rows = [
    (
      'model', 'parameters', 'steps', 'compute s', 'average s',
      '2.1M a batch: tokens', 'H100s', f'{TOKENS_PER_PARAMETER} a parameter: batch', 'H100s',
    )
  ]  # fmt: skip
  for size, run in fits.items():
    plan = plans[size]
    by_batch, by_size = run.steps * PAPER_BATCH, TOKENS_PER_PARAMETER * plan.parameters
    rows.append(
      (
        size,
        f'{plan.parameters / 1e9:.2f}B',
        f'{run.steps:,.0f}',
        f'{run.compute_s:.3f}',
        f'{average_seconds(plan):.3f}',
        f'{by_batch / 1e9:,.0f}B',
        f'{devices(plan, run, by_batch):.0f}',
        f'{by_size / run.steps:,.0f}',
        f'{devices(plan, run, by_size):.1f}',
      )
    )
  return rows


def rows(fits: Mapping[str, Fit], plans: Mapping[str, Plan]) -> list[dict[str, Any]]:
  """Returns the days of each model, method and bandwidth, with the paper's where it has them."""
  found = []
  for size, run in fits.items():
    for method, ledger in plans[size].ledgers.items():
      for gbps in GBPS:
        paper = PAPER_DAYS[size].get(method, '') if np.isclose(gbps, PAPER_GBPS) else ''
        days = {'days': f'{run.days(ledger, gbps):.4f}', 'paper_days': paper}
        found.append({'model': size, 'method': method, 'gbps': f'{gbps:.4g}', **days})
  return found


def plot(fits: Mapping[str, Fit], plans: Mapping[str, Plan], wire: Sequence[TimeRow]) -> Figure:
  """Draws days against bandwidth, a panel a model, and measured against planned steps."""
  figure, (*of_models, of_wire) = plots.panels(
    len(fits) + 1, 'Days of a run against bandwidth, K_x = 256, fitted to the paper at 100 Gb/s; '
    'steps over throttled links'
  )  # fmt: skip
  for axes, (size, run) in zip(of_models, fits.items(), strict=True):
    for method, ledger in plans[size].ledgers.items():
      days = [run.days(ledger, gbps) for gbps in GBPS]
      axes.plot(GBPS, days, label=method, **plots.style(method))
    days = list(PAPER_DAYS[size].values())
    axes.plot([PAPER_GBPS] * len(days), days, 'kx', label='the paper')
    axes.set(xscale='log', yscale='log', xlabel='Gb/s a worker', ylabel='days', title=size)
  of_models[0].legend(fontsize='small')
  _draw_wire(of_wire, wire)
  return figure


def _draw_wire(axes, wire: Sequence[TimeRow]) -> None:
  for method in dict.fromkeys(row.method for row in wire):
    steps = [(row.predicted_s, row.step_s) for row in wire if row.method == method]
    axes.plot(*zip(*steps, strict=True), 'o', color=plots.style(method).get('color'), label=method)
  planned = [row.predicted_s for row in wire]
  ends = np.array([min(planned), max(planned)])
  axes.plot(ends, ends, color='gray')
  off = wire_checks.PLANNED_WITHIN / 100
  axes.fill_between(ends, (1 - off) * ends, (1 + off) * ends, color='gray', alpha=0.2)
  axes.set(xscale='log', yscale='log', xlabel='step by the planner (s)', ylabel='step measured (s)')
  axes.set_title(
    f'{wire[0].processes} to {wire[-1].processes} processes; band: {wire_checks.PLANNED_WITHIN}%'
  )
  axes.legend(fontsize='small')


if __name__ == '__main__':
  command.main(sys.modules[__name__])
