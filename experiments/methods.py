"""All methods on one model and text: loss, bytes and tokens/s, mean and spread over seeds.

  python -m experiments.methods --config=configs/tiny.py --config.steps=240

Runs go to runs/methods/METHOD-SEED; a finished one is not repeated and an interrupted one resumes.
Writes experiments/results/methods.csv and methods.png and prints the table.
"""

import collections
import copy
import csv
import json
import pathlib
import statistics

from absl import app, flags, logging
from matplotlib.figure import Figure
from ml_collections import config_dict, config_flags

from desloc_jax.tables import align
from desloc_jax.train import cli
from desloc_jax.train.config_changes import changed_options
from desloc_jax.train.loop import train
from desloc_jax.train.metrics import format_bytes
from desloc_jax.train.workdir import CONFIG_FILE, SUMMARY_FILE

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A file of configs/.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Runs of each method.', lower_bound=1)
_RUNS = flags.DEFINE_string('runs', 'runs/methods', 'Folder of the runs.')
_RESULTS = flags.DEFINE_string('results', 'experiments/results', 'Folder of the table and plot.')

# What a method needs besides its name. Plain SGD has no scale of its own: rate and clipping differ.
VARIANTS = {
  'ddp': {},
  'local_sgd': {'inner.name': 'sgd', 'inner.momentum': 0.0, 'inner.learning_rate': 0.2},
  'local_adam': {},
  'favg_opt': {},
  'favg_reset': {},
  'diloco': {},
  'desloc': {},
  'desloc_nesterov': {'outer.learning_rate': 1.0},
  'mt_dao': {},
  'desloc stochastic': {'method': 'desloc', 'stochastic': True},
}
COLUMNS = (
  'variant', 'seed', 'steps', 'val_loss', 'bits_per_byte', 'bytes_per_worker', 'ddp_ratio',
  'tokens_per_s', 'jax', 'device',
)  # fmt: skip


def run(config: config_dict.ConfigDict, variant: str, seed: int, runs: pathlib.Path) -> dict:
  """Returns the row of one run, training it if there is no result of the same config."""
  config = copy.deepcopy(config)  # ConfigDict(config) would share the groups of options.
  config.update_from_flattened_dict({'method': variant, 'seed': seed, **VARIANTS[variant]})
  workdir = runs / f'{variant.replace(" ", "_")}-{seed}'
  summary_path = workdir / SUMMARY_FILE
  summary = json.loads(summary_path.read_text()) if summary_path.exists() else {}
  if summary.get('steps') == config.steps:
    changed_options(config, json.loads((workdir / CONFIG_FILE).read_text()))
  else:
    print(f'--- {variant}, seed {seed}')
    summary = train(config, workdir)
  row = {name: summary.get(name) for name in COLUMNS}
  return row | {'variant': variant, 'seed': seed, 'jax': summary['versions']['jax']}


def table(rows: list[dict]) -> str:
  """Returns mean and standard deviation over seeds, by variant."""
  groups = collections.defaultdict(list)
  for row in rows:
    groups[row['variant']].append(row)
  lines = [('method', 'validation loss', 'bits/byte', 'bytes/worker', 'less than DDP', 'tokens/s')]
  for variant, group in groups.items():
    losses = [row['val_loss'] for row in group]
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    lines.append((
      variant,
      f'{statistics.mean(losses):.4f} ± {spread:.4f}',
      f'{statistics.mean(row["bits_per_byte"] for row in group):.3f}',
      format_bytes(statistics.mean(row['bytes_per_worker'] for row in group)),
      f'{statistics.mean(row["ddp_ratio"] for row in group):.2f}x',
      f'{statistics.median(row["tokens_per_s"] for row in group):,.0f}',
    ))  # fmt: skip
  return align(lines)


def plot(rows: list[dict], path: pathlib.Path, title: str) -> None:
  """Draws validation loss against bytes, a point a run."""
  figure = Figure(figsize=(7.5, 5), layout='constrained')
  axes = figure.subplots()
  for variant in dict.fromkeys(row['variant'] for row in rows):
    group = [row for row in rows if row['variant'] == variant]
    megabytes = [row['bytes_per_worker'] / 1e6 for row in group]
    axes.plot(megabytes, [row['val_loss'] for row in group], 'o', label=variant, alpha=0.7)
  axes.set(
    xscale='log',
    xlabel='payload sent by each worker (MB)',
    ylabel='validation loss (nats per token)',
    title=title,
  )
  axes.grid(alpha=0.3)
  axes.legend(fontsize='small')
  figure.savefig(path, dpi=120)


def main(argv):
  del argv
  logging.set_verbosity(logging.ERROR)
  config, results = _CONFIG.value, pathlib.Path(_RESULTS.value)
  rows = [
    run(config, variant, seed, pathlib.Path(_RUNS.value))
    for seed in range(_SEEDS.value)
    for variant in VARIANTS
  ]
  results.mkdir(parents=True, exist_ok=True)
  with (results / 'methods.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
  title = f'{config.workers} workers, {config.steps} steps, {_SEEDS.value} seeds'
  plot(rows, results / 'methods.png', title)
  print(f'\n{title}\n{table(rows)}')


if __name__ == '__main__':
  app.run(cli.exit_with_one_line(main), flags_parser=cli.parse_flags)
