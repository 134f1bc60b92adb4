"""The pod configurations compiled ahead of time for TPUs, on a machine that has none.

  pip install -r requirements-tpu.txt
  python -m experiments.systems.pods

Each is the training step that a run compiles; see `--mode=compile` of run.py. Several micro-batches
are one after another, and each must have a sequence for every chip of a worker.

Writes experiments/results/pods.csv. A compilation takes a minute or two on two cores.
"""

import argparse
from collections.abc import Sequence
import csv
import importlib
import pathlib

import jax
from tqdm import tqdm

from desloc_jax import commands
from desloc_jax.commands import Option
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import format_bytes
from desloc_jax.logs.workdir import write_text
from desloc_jax.options.topology import libtpu_version
from desloc_jax.plan import compile_step, CompiledStep
from desloc_jax.plan.compile_table import (
  BETWEEN,
  EVERY_STEP,
  INSIDE,
  ON_CONDITION,
  sent_bytes,
  sync_bytes,
  traffic,
)
from desloc_jax.tables import align
from experiments.report import csv_text, RESULTS

TEXTS = ('config', 'topology', 'versions')
# What is sent in few bytes, in the rows whose name ends so.
FEW, FEW_BYTES = ' int8/int4', {'sync.params': 'int8', 'sync.moments': 'int4'}
# Config, topology, micro-batches of a step.
RUNS = (
  ('gpt_1b', 'v5e:8x8', 8),
  ('gpt_1b', 'v5e:16x16', 4),
  ('gpt_1b', '4x v5e:4x4', 8),
  ('gpt_1b', '4x v5e:8x8', 4),
  ('gpt_1_7b', 'v5e:8x8', 8),
  ('gpt_1_7b', 'v5e:16x16', 4),
  ('gpt_13b', 'v5p:4x4x8', 8),
  (f'gpt_1b{FEW}', 'v5e:8x8', 8),
)


def compile_run(name: str, topology: str, accumulation: int) -> CompiledStep:
  """Returns the compiled step of `configs/NAME.py`, with syncs in few bytes if NAME says so."""
  config = importlib.import_module(f'configs.{name.removesuffix(FEW)}').get_config()
  config.topology, config.accumulation = topology, accumulation
  if name.endswith(FEW):
    config.update_from_flattened_dict(FEW_BYTES)
  return compile_step(config)


def row_of(name: str, step: CompiledStep) -> dict[str, object]:
  """Returns what the table says of a compiled step; bytes are of a chip."""
  found = traffic(step)
  gathered, scattered = (
    sent_bytes(found, INSIDE, EVERY_STEP, kind) for kind in ('all-gather', 'reduce-scatter')
  )
  parts, planned = sum(step.estimate.values()), sum(step.memory.values())
  return {
    'config': name,
    'topology': str(step.topology),
    'chips': step.chips,
    'micro_batches': step.config.accumulation,
    'parts_bytes': round(parts),
    'xla_bytes': planned,
    'capacity_bytes': step.capacity,
    'all_gather_bytes': round(gathered),
    'reduce_scatter_bytes': round(scattered),
    'other_inside_bytes': round(sent_bytes(found, INSIDE, EVERY_STEP) - gathered - scattered),
    'between_every_step_bytes': round(sent_bytes(found, BETWEEN, EVERY_STEP)),
    'between_on_condition_bytes': round(sent_bytes(found, BETWEEN, ON_CONDITION)),
    'ledger_bytes': round(sum(by_ledger for by_ledger, _ in sync_bytes(step).values())),
    'model_flops': step.model_flops,
    'xla_flops': step.xla_flops,
    'compile_s': round(step.seconds, 1),
    'versions': f'jax {jax.__version__}, libtpu {libtpu_version()}',
  }


def table(rows: Sequence[dict[str, object]]) -> str:
  """Returns the rows as text."""
  lines = [
    (
      'config', 'TPUs', 'chips/worker', 'parts', 'XLA', 'XLA/parts', 'of a chip', 'fits',
      'all-gather', 'reduce-scatter', 'other', 'between', 'at syncs', 'ledger', 'TFLOP',
    )
  ]  # fmt: skip
  for row in rows:
    size = lambda name, row=row: format_bytes(row[f'{name}_bytes'])
    share = row['xla_bytes'] / row['capacity_bytes']
    lines.append(
      (
        row['config'],
        row['topology'],
        f'{row["chips"]:.0f}',
        size('parts'),
        size('xla'),
        f'{row["xla_bytes"] / row["parts_bytes"]:.3f}',
        f'{share:.1%}',
        'yes' if share <= 1 else 'no',
        size('all_gather'),
        size('reduce_scatter'),
        size('other_inside'),
        size('between_every_step'),
        size('between_on_condition'),
        size('ledger'),
        f'{row["model_flops"] / 1e12:,.0f}',
      )
    )
  return align(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  with commands.one_line_errors():
    _compile_all(
      commands.parse(
        'experiments.systems.pods',
        __doc__,
        argv,
        results=Option(RESULTS, 'folder of the table'),
        only=Option('', 'compile those whose name has this, keep others'),
      )
    )


def _compile_all(args: argparse.Namespace) -> None:
  jax.config.update('jax_platforms', 'cpu')
  names = {f'{name} on {topology}': run for run in RUNS for name, topology, _ in [run]}
  chosen = [name for name in names if args.only in name]
  if not chosen:
    raise UserError(f'--only is {args.only!r}; expected a part of one of: {", ".join(names)}.')
  results = pathlib.Path(args.results)
  path = results / 'pods.csv'
  rows = _read(path) if args.only else {}
  bar = tqdm(chosen, unit='step')
  for name in bar:
    bar.set_description(name)
    rows[name] = row_of(names[name][0], compile_run(*names[name]))
    _write(path, [rows[name] for name in names if name in rows])
  print(table(list(_read(path).values())))
  print(
    'Bytes of one chip and step. All-gather, reduce-scatter and other are inside a worker; between '
    'is what workers exchange in every step, at syncs where all of them come in one step; ledger is '
    'what the ledger says of that.'
  )


def _read(path: pathlib.Path) -> dict[str, dict[str, object]]:
  """Returns the rows of an earlier run by config and topology; none where there was no run."""
  if not path.exists():
    return {}
  with path.open(newline='') as file:
    rows = [
      {key: text if key in TEXTS else float(text) for key, text in row.items()}
      for row in csv.DictReader(file)
    ]
  return {f'{row["config"]} on {row["topology"]}': row for row in rows}


def _write(path: pathlib.Path, rows: Sequence[dict[str, object]]) -> None:
  shown = lambda x: f'{x:.15g}' if isinstance(x, float) else x
  write_text(path, csv_text([{key: shown(x) for key, x in row.items()} for row in rows]))


if __name__ == '__main__':
  main()
