"""Workers that read different letters, with SCAFFOLD's control variates and without.

  python -m experiments.extensions.scaffold

Half of the workers reads the built-in text in small letters, half in capitals (as in
`experiments.extensions.disjoint`): between averages each is drawn to a model of its own, and further with
every local step. SCAFFOLD (arXiv:1910.06378) corrects each gradient by how those of all differed from its
own since the last average, for twice the bytes. It is made for SGD without momentum, which has a rate of
its own here; Adam, with the run's rate, takes the corrected gradient too.

Half of the scale's steps, at its smaller K_x. Validation is of both kinds of letters.
"""

from collections.abc import Sequence
import dataclasses
import sys

from experiments import command, plots
from experiments.extensions.disjoint import with_letters
from experiments.report import above, Check, grouped, loss_table, Report, rows_of, times
from experiments.runs import Result, Run
from experiments.scales import changed, Scale

SGD = {'inner.name': 'sgd', 'inner.momentum': 0.0, 'inner.learning_rate': 0.5}
VARIANTS = {
  'ddp': {'method': 'ddp'},
  'Adam': {'method': 'favg_opt'},
  'Adam, SCAFFOLD': {'method': 'scaffold'},
  'SGD': {'method': 'local_sgd', **SGD},
  'SGD, SCAFFOLD': {'method': 'scaffold', **SGD},
}


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each variant and seed."""
  config = with_letters(changed(scale.config, settings(scale)))
  return dataclasses.replace(scale, config=config).runs(VARIANTS)


def settings(scale: Scale) -> dict[str, object]:
  """Returns what the runs have in common."""
  steps = scale.config.steps // 2
  return {
    'steps': steps, 'schedule.warmup_steps': steps // 8, 'periods.params': scale.fast,
    'eval.every': max(1, steps // 4), 'data.tokenizer': 'bytes',
  }  # fmt: skip


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the comparison."""
  groups = grouped(results)
  figure, (panel,) = plots.panels(
    1, f'Half of {scale.config.workers} workers read small letters, half capitals; K_x = '
    f'{scale.fast}: mean and range of {scale.seeds} seeds', 9
  )  # fmt: skip
  plots.curves(panel, groups)
  panel.set(xlabel='step', ylabel=plots.LOSS)
  panel.legend()
  sent = lambda result: result.summary['bytes_per_worker']
  checks = [
    check
    for inner in ('SGD', 'Adam')
    for check in (
      Check(f"with {inner} SCAFFOLD's loss is below that without it",
            above(groups[f'{inner}, SCAFFOLD'], groups[inner]), at_most=0, unit='%'),
      Check(f'with {inner} it sends twice the bytes (1.9x to 2.1x)',
            times(groups[f'{inner}, SCAFFOLD'], groups[inner], sent), 1.9, 2.1, 'x', exact=True),
    )
  ]  # fmt: skip
  table = loss_table(groups, 'method')
  return Report('Different letters, with control variates', rows_of(results), table, checks, figure)


if __name__ == '__main__':
  command.main(sys.modules[__name__])
