"""DES-LOC-Muon against Local Muon: bytes and loss.

  python -m experiments.paper.muon

The paper (16M to 360M, K_x = 32, first moments 96, second of the part under AdamW 192): DES-LOC
matches Local Muon with 1.5x fewer bytes. The hidden matrices are under Muon, the embedding and the
norms under Adam, all with one learning rate: 0.02, as Muon's steps are smaller than Adam's at the
same rate. Where the scale has maps: MuLoCo (arXiv:2505.23725) beside them, an outer Nesterov step over Muon.
"""

from collections.abc import Sequence
import sys

from experiments import command, plots
from experiments.report import above, Check, grouped, loss_table, Report, rows_of, times
from experiments.runs import Result, Run
from experiments.scales import Scale

# At cpu scale 0.002 and 0.006 were worse, and more was not tried.
OPTIONS = {
  'inner.name': 'muon', 'inner.learning_rate': 0.02, 'inner.b1': None, 'inner.b2': None,
}  # fmt: skip
METHODS = {'DDP-Muon': 'ddp', 'Local Muon': 'local_adam', 'DES-LOC-Muon': 'desloc'}


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each method and seed."""
  shared = {**OPTIONS, 'periods.params': 2 * scale.fast}
  methods = {**METHODS, 'MuLoCo': 'muloco'} if scale.maps else METHODS
  return scale.runs({name: {**shared, 'method': method} for name, method in methods.items()})


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the comparison."""
  groups = grouped(results)
  desloc, local = groups['DES-LOC-Muon'], groups['Local Muon']
  figure, (by_step, by_bytes) = plots.panels(
    2, f'Muon, K_x = {2 * scale.fast}: mean and range of {scale.seeds} seeds'
  )
  plots.curves(by_step, groups)
  plots.curves(by_bytes, groups, x='bytes_per_worker', x_scale=1e-6)
  by_step.set(xlabel='step', ylabel=plots.LOSS)
  by_bytes.set(xlabel=plots.MEGABYTES, ylabel=plots.LOSS)
  plots.log_scale(by_bytes)
  by_step.legend()
  sent = lambda result: result.summary['bytes_per_worker']
  checks = [
    Check("DES-LOC-Muon's loss is at most 1% above Local Muon's", above(desloc, local),
          at_most=1, unit='%', paper='0%'),
    Check('Local Muon sends 1.5x the bytes (1.4x to 1.7x)', times(local, desloc, sent),
          1.4, 1.7, 'x', '1.5x', exact=True),
  ]  # fmt: skip
  table = loss_table(groups, 'method')
  return Report('DES-LOC with Muon', rows_of(results), table, checks, figure)


if __name__ == '__main__':
  command.main(sys.modules[__name__])
