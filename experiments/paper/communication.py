"""Validation loss against bytes: all methods with the same model, text, steps and learning rate.

  python -m experiments.paper.communication

The paper's main comparison: DES-LOC reaches the loss of Local Adam with half of the bytes, and
sends 170x less than DDP at K_x = 256. Nothing is tuned for any method; `local_sgd` has plain SGD at
a rate of 0.2, as SGD has no scale of its own, and `desloc_nesterov` the paper's outer rate of 1.0,
which the paper starts from a DDP warm-up (see `experiments.paper.nesterov`).
"""

from collections.abc import Sequence
import math
import sys

from configs import gpt_135m
from desloc_jax.plan import make_plan
from experiments import command, plots
from experiments.report import above, Check, grouped, loss_table, Report, rows_of, times
from experiments.runs import Result, Run
from experiments.scales import Scale

VARIANTS = {
  'ddp': {},
  'local_adam': {},
  'desloc': {},
  'favg_opt': {},
  'favg_reset': {},
  'diloco': {},
  'mt_dao': {},
  'desloc_nesterov': {'outer.learning_rate': 1.0},
  'local_sgd': {'inner.name': 'sgd', 'inner.momentum': 0.0, 'inner.learning_rate': 0.2},
  'desloc stochastic': {'method': 'desloc', 'stochastic': True},
}
# Perplexity of 135M: DES-LOC 8.96, Local Adam 8.96, DDP 8.45.
PAPER_OVER_DDP = 100 * (math.log(8.96) / math.log(8.45) - 1)


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each method and seed."""
  return scale.runs({name: {'method': name, **options} for name, options in VARIANTS.items()})


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the comparison."""
  groups = grouped(results)
  desloc, local_adam = groups['desloc'], groups['local_adam']
  sent = lambda result: result.summary['bytes_per_worker']
  return Report(
    f'Loss against communication, K_x = {scale.config.periods.params}',
    rows_of(results),
    loss_table(groups, 'method'),
    [
      Check(
        "DES-LOC's loss is at most 1% above Local Adam's",
        above(desloc, local_adam),
        at_most=1,
        unit='%',
        paper='0%',
      ),
      Check(
        'Local Adam sends about twice the bytes (1.9x to 2.1x)',
        times(local_adam, desloc, sent),
        1.9,
        2.1,
        'x',
        paper='2x',
        exact=True,
      ),
      Check(
        "DES-LOC's loss is above DDP's",
        above(desloc, groups['ddp']),
        at_least=0,
        unit='%',
        paper=f'{PAPER_OVER_DDP:.1f}% at 135M',
      ),
      Check(
        'at 135M and K_x = 256 DDP sends 170x to 171x as much',
        [_ratio_at_135m()],
        170,
        171,
        'x',
        paper='170x',
        exact=True,
      ),
    ],
    _figure(groups, scale),
  )  # fmt: skip


def _ratio_at_135m() -> float:
  """Returns how many times DES-LOC's bytes DDP sends at the paper's periods, in the long run."""
  config = gpt_135m.get_config()
  config.periods.params = 256
  ledgers = make_plan(config).ledgers
  return ledgers['ddp'].bytes_per_step / ledgers['desloc'].bytes_per_step


def _figure(groups, scale: Scale):
  config = scale.config
  figure, (by_step, by_bytes) = plots.panels(
    2, f'{config.workers} workers, K_x = {config.periods.params}, {config.steps} steps, '
    f'{scale.seeds} seeds (mean and range; a point a run)'
  )  # fmt: skip
  plots.curves(by_step, groups)
  # The first steps of an outer Nesterov would make all others one line.
  losses = [result.loss for group in groups.values() for result in group if not result.diverged]
  by_step.set(xlabel='step', ylabel=plots.LOSS, ylim=(0.95 * min(losses), 1.1 * max(losses)))
  plots.points(by_bytes, groups, plots.bytes_of)
  by_bytes.set(xlabel=plots.MEGABYTES, ylabel=f'final {plots.LOSS}')
  plots.log_scale(by_bytes)
  figure.legend(*by_step.get_legend_handles_labels(), loc='outside center right', fontsize='small')
  return figure


if __name__ == '__main__':
  command.main(sys.modules[__name__])
