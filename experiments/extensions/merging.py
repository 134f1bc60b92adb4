"""A few averages of the parameters: early in a run, evenly, late, or a single one at its end.

  python -m experiments.extensions.merging

All but the single merge have as many averages at the same bytes; periods grow to twenty times themselves
or shrink to a twentieth. The loss is that of the mean of the workers' models at the end, which is one more
average for each. arXiv:2507.06542 says of workers that gossip, with SGD and very different data, that late
averages are worth more than early ones, and that a single merge at the end improves much.

Half of the scale's steps. Moments stay local.
"""

import bisect
from collections.abc import Sequence
import sys

from desloc_jax.optimizer.sync_periods import growing_timetables
from experiments import command, plots
from experiments.report import above, Check, grouped, loss_table, Report, rows_of, times
from experiments.runs import Result, Run
from experiments.scales import Scale

AVERAGES = 8
GROWTH = {'early': 20.0, 'evenly': 1.0, 'late': 1 / 20}
DDP, ONCE = 'ddp', 'once, at the end'


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each variant and seed, and of DDP."""
  steps = scale.config.steps // 2
  shared = {'steps': steps, 'schedule.warmup_steps': steps // 8, 'eval.every': 0}
  few = {
    name: {
      'method': 'favg_opt', 'period_growth': growth, 'periods.params': first_period(growth, steps),
    }
    for name, growth in GROWTH.items()
  }  # fmt: skip
  variants = {DDP: {'method': 'ddp'}, **few, ONCE: {'method': 'merge_once'}}
  return scale.runs({name: {**shared, **options} for name, options in variants.items()})


def first_period(growth: float, steps: int) -> int:
  """Returns the shortest first period with no more than `AVERAGES` in a run; fewer in a short one."""
  count = min(AVERAGES, steps // 3)
  averages = lambda first: len(_times(first, growth, steps))
  return 1 + bisect.bisect_left(range(1, steps), -count, key=lambda first: -averages(first))


def _times(first: int, growth: float, steps: int) -> Sequence[int]:
  return growing_timetables({'params': first}, growth, steps, steps)['params'].times


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the comparison."""
  groups = grouped(results)
  few = {name: groups[name] for name in GROWTH}
  steps = scale.config.steps // 2
  figure, (when, losses) = plots.panels(
    2, f'When to average {scale.config.workers} workers, {steps} steps: mean and deviation of '
    f'{scale.seeds} seeds',
  )  # fmt: skip
  times_of = {
    **{name: _times(first_period(growth, steps), growth, steps) for name, growth in GROWTH.items()},
    ONCE: [steps],
  }
  when.eventplot(list(times_of.values()), linelengths=0.8)
  when.set_yticks(range(len(times_of)), list(times_of))
  when.set(xlabel='step', title='averages of the parameters')
  names = list(groups)
  plots.mean_line(
    losses, range(len(names)), [[r.loss for r in groups[name]] for name in names], '', linestyle=''
  )
  losses.set_xticks(range(len(names)), names)
  losses.set(ylabel=f'final {plots.LOSS}', title='loss of the mean model')
  sent = lambda result: result.summary['bytes_per_worker']
  checks = [
    Check("late averages: the loss is below that of early ones", above(few['late'], few['early']),
          at_most=0, unit='%', paper='better'),
    Check("and below that of even ones", above(few['late'], few['evenly']), at_most=0, unit='%'),
    Check('a single merge: the loss is at most 3% above that of late averages',
          above(groups[ONCE], few['late']), at_most=3, unit='%'),
    Check('early and late averages send as many bytes as even ones',
          [x for name in few for x in times(few[name], few['evenly'], sent)], 1, 1, 'x', exact=True),
  ]  # fmt: skip
  table = loss_table(groups, 'averages')
  return Report('Few averages: early, late, once', rows_of(results), table, checks, figure)


if __name__ == '__main__':
  command.main(sys.modules[__name__])
