"""Every method with the settings that suit it best, on seeds that the choice has not seen.

  python -m experiments.extensions.tuned --processes=2

`experiments.extensions.tuning` and `finalists` have chosen learning rate, outer momentum and MT-DAO's weight
of each method, with the same number of runs. Runs have 64 averages of the parameters and 10 of the second moment.
"""

from collections.abc import Sequence
import sys

from experiments import command, plots
from experiments.extensions import finalists, tuning
from experiments.report import above, Check, grouped, loss_table, Report, rows_of, times
from experiments.runs import Result, Run
from experiments.scales import Scale


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each method and seed."""
  best = finalists.best(scale)
  return scale.runs(
    {
      method: {**tuning.settings(scale), **tuning.options_of(method), **best[method]}
      for method in tuning.METHODS
    }
  )


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the comparison."""
  groups = grouped(results)
  figure, (by_step, by_bytes) = plots.panels(
    2, f'Tuned, K_x = {scale.config.periods.params}, {tuning.settings(scale)["steps"]} steps: mean '
    f'and range of {scale.seeds} seeds',
  )  # fmt: skip
  plots.curves(by_step, groups)
  losses = [result.loss for result in results if not result.diverged]
  by_step.set(xlabel='step', ylabel=plots.LOSS, ylim=(0.95 * min(losses), 1.2 * max(losses)))
  plots.points(by_bytes, groups, plots.bytes_of)
  by_bytes.set(xlabel=plots.MEGABYTES, ylabel=f'final {plots.LOSS}')
  plots.log_scale(by_bytes)
  by_step.legend(fontsize='small')
  sent = lambda result: result.summary['bytes_per_worker']
  desloc, local = groups['desloc'], groups['local_adam']
  checks = [
    Check("DES-LOC's loss is at most 1% above Local Adam's", above(desloc, local),
          at_most=1, unit='%', paper='0%'),
    Check('Local Adam sends about twice the bytes (1.9x to 2.1x)', times(local, desloc, sent),
          1.9, 2.1, 'x', '2x', exact=True),
    Check("DES-LOC's loss is above DDP's", above(desloc, groups['ddp']),
          at_least=0, unit='%', paper='2.7% at 135M'),
    Check("DES-LOC's loss is below FAVG+OPT's", above(desloc, groups['favg_opt']),
          at_most=0, unit='%'),
    Check("DES-LOC's loss is below FAVG-OPT's", above(desloc, groups['favg_reset']),
          at_most=0, unit='%'),
    Check("DES-LOC's loss is below DiLoCo's", above(desloc, groups['diloco']),
          at_most=0, unit='%'),
    Check("DES-LOC-Muon's loss is at most 1% above Local Muon's",
          above(groups['DES-LOC-Muon'], groups['Local Muon']), at_most=1, unit='%', paper='0%'),
    Check("DES-LOC-Muon's loss is below that of DDP with Adam",
          above(groups['DES-LOC-Muon'], groups['ddp']), at_most=0, unit='%'),
  ]  # fmt: skip
  table = loss_table(groups, 'method')
  words = lambda best: ', '.join(f'{name.split(".")[1]} {value:g}' for name, value in best.items())
  settings = '; '.join(f'{method} {words(best)}' for method, best in finalists.best(scale).items())
  return Report(
    'Every method tuned', rows_of(results), table, checks, figure, [f'Settings: {settings}.']
  )


if __name__ == '__main__':
  command.main(sys.modules[__name__])
