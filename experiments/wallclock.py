"""The paper's days of 1B, 7B and 13B at 100 Gb/s: what explains them, and the days on other links.

  python -m experiments.wallclock

arXiv:2505.22549 prints days, and we know of no list of what they were computed from. Two numbers a
model are fitted to its three: the run's arithmetic, and its number of steps, each as long as an
average of the model over 100 Gb/s. How often a method averages comes from the ledgers of our models
at K_x = 256. Averages of DDP's gradients may hide behind a share of the arithmetic, the same for all
models.

It is arithmetic, the same at every scale: days of each method against bandwidth.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import statistics
import sys
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from configs import gpt_1b
from desloc_jax.optimizer.ledger import EVERY_STEP, Ledger
from desloc_jax.plan import make_plan, Plan
from desloc_jax.plan.timing import all_reduce_seconds, Link, step_time
from desloc_jax.tables import align
from experiments import command, plots
from experiments.report import Check, Report
from experiments.runs import Result, Run
from experiments.scales import Scale

PAPER_DAYS = {
  '1B': {'ddp': 1.41, 'local_adam': 0.64, 'desloc': 0.63},
  '7B': {'ddp': 38.74, 'local_adam': 24.18, 'desloc': 24.06},
  '13B': {'ddp': 175.50, 'local_adam': 83.34, 'desloc': 82.68},
}
# Layers, width, heads: gpt_1b's, and LLaMA's for the sizes that the paper did not train.
SHAPES = {'1B': (24, 2048, 16), '7B': (32, 4096, 32), '13B': (40, 5120, 40)}
PAPER_GBPS = 100.0
PAPER_BATCH, TOKENS_PER_PARAMETER = 2**21, 20
ROUNDING = 0.005  # Of days with two decimals.
SHARES = np.linspace(0, 0.5, 51)  # Of arithmetic, that may hide DDP's averages.
GBPS = 10 ** np.linspace(0, 3, 31)
DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Fit:
  """What explains the days of one model.

  Attributes:
    steps: of the run.
    compute_s: arithmetic of a step.
    overlap: share of it that DDP's averages may hide behind.
  """

  steps: float
  compute_s: float
  overlap: float

  def days(self, ledger: Ledger, gbps: float = PAPER_GBPS) -> float:
    """Returns the days of a method that sends what `ledger` says."""
    time = step_time(ledger, link(gbps), self.compute_s, self.overlap)
    return self.steps * time.total_s / DAY


def link(gbps: float) -> Link:
  """Returns a link without latency."""
  return Link(gbps * 1e9 / 8)


def plan_of(size: str) -> Plan:
  """Returns the plan of a model of `SHAPES`, trained as gpt_1b is."""
  config = gpt_1b.get_config()
  layers, width, heads = SHAPES[size]
  config.model.update({'layers': layers, 'width': width, 'heads': heads})
  return make_plan(config)


def average_seconds(plan: Plan) -> float:
  """Returns the seconds of one average of the model on the paper's link."""
  ledger = plan.ledgers['ddp']
  return all_reduce_seconds(ledger, ledger.bytes_per_sync[EVERY_STEP], link(PAPER_GBPS))


def fit(size: str, plan: Plan, overlap: float) -> Fit:
  """Returns the least-squares fit to the paper's days of a model: linear in two unknowns."""
  ddp_bytes = plan.ledgers['ddp'].bytes_per_step
  rows = [
    (1 - overlap * (method == 'ddp'), plan.ledgers[method].bytes_per_step / ddp_bytes)
    for method in PAPER_DAYS[size]
  ]
  seconds = DAY * np.array(list(PAPER_DAYS[size].values()))
  (compute_s, averages_s), *_ = np.linalg.lstsq(np.array(rows), seconds)
  steps = averages_s / average_seconds(plan)
  return Fit(steps, compute_s / steps, overlap)


def residuals(fits: Mapping[str, Fit], plans: Mapping[str, Plan]) -> dict[tuple[str, str], float]:
  """Returns the days of the fits less those of the paper, by model and method."""
  return {
    (size, method): fits[size].days(plans[size].ledgers[method]) - days
    for size, paper in PAPER_DAYS.items()
    for method, days in paper.items()
  }


def fits_by_share(plans: Mapping[str, Plan]) -> dict[float, dict[str, Fit]]:
  """Returns the fits of all models for each share of `SHARES`."""
  return {
    float(share): {size: fit(size, plan, share) for size, plan in plans.items()} for share in SHARES
  }


def largest(errors: Mapping[tuple[str, str], float]) -> float:
  """Returns the largest residual."""
  return max(map(abs, errors.values()))


def devices(plan: Plan, run: Fit, tokens: float) -> float:
  """Returns how many of the plan's devices do a run's arithmetic on `tokens` in the fitted time."""
  device_s = plan.times['ddp'].compute_s * plan.devices * plan.config.workers
  return device_s / plan.clock.tokens_per_step * tokens / (run.steps * run.compute_s)


def one_setting(fits: Mapping[str, Fit], plans: Mapping[str, Plan]) -> tuple[float, float, dict]:
  """Returns batch, devices and fits of a single setting: the geometric mean of the models' own.

  Each model sees `TOKENS_PER_PARAMETER`; batch (in tokens) and devices are the same for all.
  """
  tokens = {size: TOKENS_PER_PARAMETER * plan.parameters for size, plan in plans.items()}
  batch = statistics.geometric_mean(tokens[size] / run.steps for size, run in fits.items())
  count = statistics.geometric_mean(
    devices(plans[size], run, tokens[size]) for size, run in fits.items()
  )
  shared = {}
  for size, run in fits.items():
    steps = tokens[size] / batch
    total_s = run.steps * run.compute_s * devices(plans[size], run, tokens[size]) / count
    shared[size] = Fit(steps, total_s / steps, run.overlap)
  return batch, count, shared


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
    f'The {best:.2f} fit, given {gpt_1b.get_config().workers} workers that average float32 over '
    f"{PAPER_GBPS:g} Gb/s each: H100s at an MFU of 0.4, if a batch is the paper's 2.1M tokens "
    f'or else if a run is {TOKENS_PER_PARAMETER} tokens a parameter.',
  ]
  claim = "the best fit's largest error in days, of nine, is within the paper's rounding"
  check = Check(claim, [error[best]], at_most=ROUNDING, unit=' days', exact=True)
  title = "The paper's days, K_x = 256, fitted at 100 Gb/s"
  return Report(title, rows(fits, plans), table, [check], plot(fits, plans), notes)


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


def plot(fits: Mapping[str, Fit], plans: Mapping[str, Plan]) -> Figure:
  """Draws days against bandwidth, a panel a model."""
  figure, panels = plots.panels(
    len(fits), 'Days of a run against bandwidth, K_x = 256, fitted to the paper at 100 Gb/s', 4.4
  )
  for axes, (size, run) in zip(panels, fits.items(), strict=True):
    for method, ledger in plans[size].ledgers.items():
      days = [run.days(ledger, gbps) for gbps in GBPS]
      axes.plot(GBPS, days, label=method, **plots.style(method))
    days = list(PAPER_DAYS[size].values())
    axes.plot([PAPER_GBPS] * len(days), days, 'kx', label='the paper')
    axes.set(xscale='log', yscale='log', xlabel='Gb/s a worker', title=size)
  panels[0].set_ylabel('days')
  panels[0].legend()
  return figure


if __name__ == '__main__':
  command.main(sys.modules[__name__])
