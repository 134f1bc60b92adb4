"""Rows that one worker alone has a gradient in: an untied GPT, workers with different letters.

  python -m experiments.extensions.disjoint

The first half of the workers reads the built-in text in small letters, the others in capitals, with
nothing else in it. So half of the input embedding's rows have no gradient at all on a worker. When
the first moments are averaged before the second ones, Adam divides there by almost nothing.
`moment_guard` raises the second moment to what Adam itself could have (see
desloc_jax/optimizer/worker_step/moment_guard.py). ADOPT divides before its first moment and needs
none.

The health check is off: it would leave out the workers that explode.
"""

from collections.abc import Sequence
import json
import pathlib
import re
import sys

import jax
from ml_collections import config_dict
import numpy as np

from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.data.reading.documents import read_documents
from desloc_jax.logs.workdir import CHECKPOINTS, write_text
from experiments import command, plots
from experiments.report import above, Check, loss_table, mean_spread, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import changed, Scale

LETTERS = {'small': str.lower, 'capital': str.upper}
FOLDER = pathlib.Path('runs/letters')
METHODS = {
  'desloc': {'method': 'desloc'},
  'desloc, no guard': {'method': 'desloc', 'moment_guard': False},
  'local_adam': {'method': 'local_adam'},
  'favg_opt': {'method': 'favg_opt'},
}
INNERS = {
  'adam (.9, .999)': {'inner.name': 'adam', 'inner.b1': 0.9, 'inner.b2': 0.999},
  'adam (.95, .9999)': {'inner.name': 'adam', 'inner.b1': 0.95, 'inner.b2': 0.9999},
  'adopt (.95, .9999)': {'inner.name': 'adopt', 'inner.b1': 0.95, 'inner.b2': 0.9999},
}
OPTIONS = {'model.tie_embeddings': False, 'health.check': False, 'data.tokenizer': 'bytes'}


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each method with each inner optimizer, for each seed."""
  config = with_letters(changed(scale.config, OPTIONS))
  return [
    Run(
      {'variant': method, 'inner': inner},
      changed(config, {**options, **of_inner, 'seed': seed}),
      measure=largest_parameter,
    )
    for seed in range(scale.seeds)
    for inner, of_inner in INNERS.items()
    for method, options in METHODS.items()
  ]


def with_letters(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """Returns the config with a source of small letters and one of capitals, a half of the workers
  each."""
  source = next(iter(config.data.sources.to_dict().values()))
  half = config.workers // 2
  shares = (1.0,) * half + (0.0,) * (config.workers - half)
  sources = {}
  for name, own in zip(LETTERS, (shares, tuple(1 - share for share in shares)), strict=True):
    path = FOLDER / f'{name}.jsonl'
    _write_letters(path, name)
    sources[name] = {**source, 'path': str(path), 'weight': 0.5, 'worker_weights': own}
  with config.unlocked():
    config.data.sources = config_dict.ConfigDict(sources)
  return config


def _write_letters(path: pathlib.Path, name: str) -> None:
  """Writes the built-in text with nothing but letters in one case."""
  if path.exists():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(
    path,
    ''.join(
      json.dumps({'id': id, 'text': LETTERS[name](re.sub('[^A-Za-z]', '', text))}) + '\n'
      for id, text in read_documents('sotu')
    ),
  )


def largest_parameter(workdir: pathlib.Path) -> float:
  """Returns the largest absolute parameter of all workers at the end."""
  checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=1)
  step = max(checkpoints.steps())
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  largest = 0.0
  for name, like in checkpoints.leaves(step).items():
    if name.startswith('optimizer.params.'):
      like = jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=here)
      with checkpoints.reader(step) as reader:
        largest = max(largest, float(np.abs(np.asarray(reader.read(name, like))).max()))
  checkpoints.close()
  return largest


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns what the guard is worth, and that it costs nothing where nothing explodes."""
  by = {
    (method, inner): [
      r for r in results if (r.run.labels['variant'], r.run.labels['inner']) == (method, inner)
    ]
    for inner in INNERS
    for method in METHODS
  }
  figure, panels = plots.panels(
    len(INNERS),
    f'{scale.config.workers} workers, half of them with small letters, half with capitals, '
    f'K_x = {scale.config.periods.params}: mean and range of {scale.seeds} seeds',
    sharey=True,
  )
  for panel, inner in zip(panels, INNERS, strict=True):
    plots.curves(panel, {method: by[method, inner] for method in METHODS})
    panel.set(xlabel='step', title=inner, yscale='log')
    panel.legend()
  panels[0].set_ylabel(plots.LOSS)
  checks = []
  for inner in list(INNERS)[:2]:
    local, guarded = by['local_adam', inner], by['desloc', inner]
    explosion = [
      plain / other
      for plain, other in zip(_largest(by['desloc, no guard', inner]), _largest(local), strict=True)
    ]
    growth = [a / b for a, b in zip(_largest(guarded), _largest(local), strict=True)]
    checks += [
      Check(f'{inner}: without the guard the largest parameter is 10 times Local Adam\'s',
            explosion, at_least=10, unit='x'),
      Check(f"{inner}: with it, at most 3 times", growth, at_most=3, unit='x'),
      Check(f"{inner}: with it the loss is at most 2% above Local Adam's", above(guarded, local),
            at_most=2, unit='%'),
    ]  # fmt: skip
  groups = {', '.join(key): group for key, group in by.items()}
  table = loss_table(groups, 'method, inner')
  table[0] += ('largest parameter',)
  table[1:] = [
    (*row, mean_spread(_largest(group)))
    for row, group in zip(table[1:], groups.values(), strict=True)
  ]
  return Report('Letters of their own', rows_of(results), table, checks, figure)


def _largest(group: Sequence[Result]) -> list[float]:
  return [result.summary.get('measured', float('inf')) for result in group]


if __name__ == '__main__':
  command.main(sys.modules[__name__])
