"""False and true alarms of the health check, in real runs of a small GPT.

  python -m experiments.systems.alarms
  python -m experiments.systems.alarms --settings='warm-up, then K_x = 64; NaN in the parameters'

Each setting is trained twice, with the check and without: healthy workers in runs that change under
way (warm-ups, other periods at a restart, growing periods, rates, workers that leave together, one
with more gradient noise), and runs in which one worker breaks. An alarm is a restart of a worker:
a true one of the worker that breaks, a false one of any other.

Writes experiments/results/alarms.csv and alarms.md, a row a setting, where all were run.
"""

import argparse
from collections.abc import Iterator, Sequence
import pathlib
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np

from configs import tiny
from desloc_jax import commands
from desloc_jax.checkpoints.train_state import TrainState
from desloc_jax.commands import Option
from desloc_jax.errors import unknown_choice
from desloc_jax.logs.workdir import write_text
from desloc_jax.tables import align
from desloc_jax.train.divergence import check_finite, TrainingDiverged
from desloc_jax.train.evaluate import Evaluator
from desloc_jax.train.job import Job, make_job
from desloc_jax.train.speed.inputs import step_inputs
from desloc_jax.train.step import finite_workers
from desloc_jax.valid import at_least
from experiments.report import check_table_stays, markdown, RESULTS, write_rows
from experiments.scales import changed
from experiments.systems.alarm_settings import (
  BACK,
  BREAKS_AT,
  own_params,
  Setting,
  SETTINGS,
  SYNC,
  WORKER,
)

# What the settings have in common beside configs/tiny.py.
STEPS = 800  # Of a run in the table.
OPTIONS = {
  'seq_len': 32, 'steps': 800, 'schedule.warmup_steps': 8, 'periods.params': 16,
  'model.layers': 1, 'model.width': 64, 'eval.sequences': 256,
}  # fmt: skip
COLUMNS = (
  'setting', 'kind', 'true alarms', 'false alarms', 'syncs it counted in', 'at the end',
  'loss', 'without the check',
)  # fmt: skip


class Outcome(NamedTuple):
  """What came of one run."""

  ended: int  # The step that ended it early; 0: none.
  restarts: np.ndarray  # int [workers].
  counted: int  # Parameter syncs after the worker broke, before it was first left out.
  healthy: bool  # Are all workers finite at the end, and were so at the last sync?
  loss: float  # Of the consensus, nats per token.


def train(setting: Setting, steps: int, check: bool) -> Outcome:
  """Trains one setting."""
  steps = steps // 2 if setting.broken else steps
  config = changed(
    tiny.get_config(), {**OPTIONS, **setting.options, 'steps': steps, 'health.check': check}
  )
  job = make_job(config, jax.devices()[:1])
  state, past, counted, syncs, restarts = (
    job.program.make_state(),
    {},
    0,
    0,
    np.zeros(config.workers, int),
  )
  ended = 0
  for step, (tokens, active) in _inputs(job, steps):
    if setting.halfway and step == steps // 2:
      job = make_job(changed(config, setting.halfway), jax.devices()[:1])
    if setting.narrow and step > BREAKS_AT:
      tokens = _narrowed(tokens)
    state, metrics = job.train_step(state, tokens, active)
    metrics = jax.device_get(metrics)
    try:
      check_finite(step, metrics, np.ones(config.workers, bool) if active is None else active)
    except TrainingDiverged:
      ended = step
      break
    synced, syncs = metrics['syncs']['params'] > syncs, metrics['syncs']['params']
    restarts = metrics['health'].get('restarts', restarts)
    counted += setting.broken and step > BREAKS_AT and synced and not restarts[WORKER]
    if setting.edit:
      state = setting.edit(step, state, past)
      past = _remember(past, step, state)
  healthy = bool(finite_workers(state).all()) and bool(
    np.all(metrics['health'].get('healthy', True))
  )
  return Outcome(ended, restarts, counted, healthy, Evaluator(job)(state)['val_loss'])


def _inputs(job: Job, steps: int) -> Iterator[tuple[int, Any]]:
  return zip(range(1, steps + 1), step_inputs(job, 0), strict=False)


def _narrowed(tokens: jax.Array) -> jax.Array:
  """Returns the batch with one sequence of worker `WORKER` in place of all of them."""
  own = tokens[WORKER]
  return jax.device_put(tokens.at[WORKER].set(own[:, :1]), tokens.sharding)


def _remember(past: dict[int, Any], step: int, state: TrainState) -> dict[int, Any]:
  """Returns the broken worker's parameters after the steps that an edit may ask for."""
  if step >= BREAKS_AT - BACK:
    past[step] = jax.device_get(own_params(state))
  return {t: x for t, x in past.items() if t >= step - BACK or t == SYNC}


def row(setting: Setting, steps: int) -> tuple[str, ...]:
  """Returns the table's row of a setting."""
  checked, plain = (train(setting, steps, check) for check in (True, False))
  true = int(checked.restarts[WORKER]) if setting.broken else 0
  end = f'ended at step {checked.ended}' if checked.ended else ''
  return (
    setting.name,
    'one breaks' if setting.broken else 'healthy',
    str(true) if setting.broken else '-',
    str(int(checked.restarts.sum()) - true),
    str(checked.counted) if setting.broken else '-',
    end or ('all healthy' if checked.healthy else 'one left out'),
    f'{checked.loss:.4f}',
    f'ended at step {plain.ended}' if plain.ended else f'{plain.loss:.4f}',
  )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the options of the command line."""
  options = commands.parse(
    'experiments.systems.alarms',
    __doc__,
    argv,
    settings=Option('', 'names from the table, separated by semicolons; else all'),
    steps=Option(STEPS, 'of a run, half where one breaks', at_least(4 * BREAKS_AT)),
    results=Option(RESULTS, 'folder of the tables'),
  )
  by_name = {setting.name: setting for setting in SETTINGS}
  names = [name.strip() for name in options.settings.split(';') if name.strip()] or [*by_name]
  for name in names:
    if name not in by_name:
      raise unknown_choice('--settings', name, by_name)
  if len(names) == len(SETTINGS):
    check_table_stays(pathlib.Path(options.results, 'alarms.csv'), steps=(options.steps, STEPS))
  options.settings = [by_name[name] for name in names]
  return options


def main():
  arguments, rows = parse(), []
  logging.set_verbosity(logging.ERROR)
  for setting in arguments.settings:
    start = time.monotonic()
    rows.append(row(setting, arguments.steps))
    print(f'{" | ".join(rows[-1])}  ({time.monotonic() - start:.0f} s)', flush=True)
  print(align([COLUMNS, *rows]))
  if len(rows) < len(SETTINGS):
    print(f'{len(rows)} of {len(SETTINGS)} settings: the tables in {arguments.results} stay.')
    return
  results = pathlib.Path(arguments.results)
  write_rows([COLUMNS, *rows], results / 'alarms.csv')
  write_text(results / 'alarms.md', markdown([COLUMNS, *rows]) + '\n')


if __name__ == '__main__':
  with commands.one_line_errors():
    main()
