"""What explains the days that the paper prints of 1B, 7B and 13B at 100 Gb/s.

arXiv:2505.22549 prints days, and we know of no list of what they were computed from. Two numbers a
model are fitted to its three: the run's arithmetic, and its number of steps, each as long as an
average of the model over 100 Gb/s. How often a method averages comes from the ledgers of our models
at K_x = 256. Averages of DDP's gradients may hide behind a share of the arithmetic, the same for
all models.
"""

from collections.abc import Mapping
import dataclasses
import statistics

import numpy as np

from configs import gpt
from desloc_jax.plan import make_plan, Plan
from desloc_jax.plan.timing import all_reduce_seconds, Link, step_time
from desloc_jax.programs.ledger import EVERY_STEP, Ledger

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
  config = gpt.get_config('1b')
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
  return device_s / plan.clock.batch.tokens * tokens / (run.steps * run.compute_s)


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
