"""One run, several processes: some are killed, the survivors go on, others join later.

  python -m experiments.systems.survivors

Plays the part of Slurm or Kubernetes on this machine: starts a process for each worker, kills one
at random, waits until the others have noticed (exit code 4), and starts the same command again with
what is left. Reads of data that hang in one of them end all (exit code 4 too). Later it asks one to stop
(SIGTERM), which all do, and starts again with new workers among them. At each start after the first the
last process does not see the newest checkpoint, as on a shared disk that is late. The global batch
stays the same throughout. A run of one process that nothing happens to is trained for
comparison.

Writes experiments/results/survivors.csv and survivors.png.
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import random
import signal
import time

from matplotlib.figure import Figure

from desloc_jax import commands
from desloc_jax.commands import Option
from desloc_jax.errors import UserError
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.tables import align
from desloc_jax.valid import at_least
from experiments.report import check_table_stays, RESULTS, write_rows
from experiments.several import last_step, start, wait_for_step
from experiments.systems.faults.command_runs import CONFIG
from experiments.systems.faults.trouble import tell

# Workers of each phase, and how it ends.
STEPS, SEED = 200, 0  # Of the table.
PHASES = ((4, 'killed'), (3, 'stuck'), (3, 'killed'), (2, 'joined'), (4, 'finished'))
OPTIONS = {
  'global_batch_size': 24, 'seq_len': 64, 'log_every': 5, 'checkpoint.every': 20,
  'checkpoint.keep': 3, 'model.layers': 2, 'model.width': 64, 'model.heads': 2,
  'periods.params': 8, 'eval.sequences': 64, 'eval.every': 0, 'schedule.warmup_steps': 10,
  'processes.stuck_timeout_s': 10,
}  # fmt: skip
COLUMNS = ('phase', 'workers', 'from step', 'to step', 'ended', 'seconds to notice', 'exit codes')


def end_by(
  event: str, processes: list, chance: random.Random
) -> tuple[float, list[int], list[str]]:
  """Ends a phase; returns the seconds until all had ended, their exit codes and last lines."""
  if event == 'killed':
    chance.choice(processes).kill()
  elif event == 'stuck':
    tell(pathlib.Path(os.environ['TROUBLE']), 'stuck', chance.randrange(len(processes)))
  elif event == 'joined':
    processes[chance.randrange(len(processes))].send_signal(signal.SIGTERM)
  began = time.monotonic()
  # Read all of them at once: a full pipe would hold up a process.
  for process in processes:
    process.wait(timeout=600)
  seconds = time.monotonic() - began
  errors = [process.communicate()[1].strip().splitlines() for process in processes]
  return (
    seconds,
    [process.returncode for process in processes],
    [e[-1] if e else '' for e in errors],
  )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the options of the command line."""
  options = commands.parse(
    'experiments.systems.survivors',
    __doc__,
    argv,
    steps=Option(STEPS, 'of the whole run', at_least(40)),
    seed=Option(SEED, 'of who is killed'),
    runs=Option(pathlib.Path('runs/survivors'), 'new folder of the two runs'),
    results=Option(RESULTS, 'folder of table and plot'),
  )
  if pathlib.Path(options.runs, 'survivors').exists():
    raise UserError(f'{options.runs} holds a run already; use another --runs.')
  check_table_stays(
    pathlib.Path(options.results, 'survivors.csv'),
    steps=(options.steps, STEPS),
    seed=(options.seed, SEED),
  )
  return options


def main():
  arguments = parse()
  runs, results = pathlib.Path(arguments.runs), pathlib.Path(arguments.results)
  chance, options = random.Random(arguments.seed), OPTIONS | {'steps': arguments.steps}
  rows, begin = [COLUMNS], 0
  for folder in (runs, results):
    folder.mkdir(parents=True, exist_ok=True)
  trouble = (runs / 'trouble').absolute()
  os.environ['TROUBLE'] = str(trouble)
  for phase, (workers, event) in enumerate(PHASES, 1):
    workdir = runs / 'survivors'
    print(f'phase {phase}: {workers} processes from step {begin}, until {event}')
    tell(trouble, 'stale' if begin else 'none', workers - 1)
    processes = start(workers, workdir, options, workers, config=CONFIG)
    if event != 'finished':
      wait_for_step(workdir, arguments.steps * phase // len(PHASES), processes)
    seconds, codes, _ = end_by(event, processes, chance)
    noticed = f'{seconds:.1f}' if event in ('killed', 'stuck') else '-'
    rows.append(
      (phase, workers, begin, last_step(workdir), event, noticed, ' '.join(map(str, codes)))
    )
    begin = last_step(workdir)
  trouble.unlink()
  print('the same in one process, with nothing happening to it')
  end_by('finished', start(PHASES[0][0], runs / 'undisturbed', options, 1), chance)
  write_rows(rows, results / 'survivors.csv')
  plot(runs, rows[1:], results / 'survivors.png')
  print(align([tuple(map(str, row)) for row in rows]))
  for name in ('undisturbed', 'survivors'):
    print(f'{name}: validation loss {read_metrics(runs / name)[-1]["val_loss"]:.4f}')


def plot(runs: pathlib.Path, rows: list[tuple], path: pathlib.Path) -> None:
  """Draws the loss over all phases beside that of the undisturbed run."""
  figure = Figure(figsize=(9, 5), layout='constrained')
  axes = figure.subplots()
  for name, style in (('undisturbed', 'k:'), ('survivors', '-')):
    lines = [line for line in read_metrics(runs / name) if 'loss' in line]
    axes.plot([line['step'] for line in lines], [line['loss'] for line in lines], style, label=name)
  for _, workers, begin, end, event, *_ in rows:
    axes.axvline(end, color='gray', linewidth=0.8)
    axes.text((begin + end) / 2, 0.97, f'{workers} workers', ha='center', va='top',
              transform=axes.get_xaxis_transform())  # fmt: skip
    if event != 'finished':
      axes.text(end, 0.9, f' {event}', va='top', transform=axes.get_xaxis_transform())
  axes.set(
    xlabel='step',
    ylabel='training loss (nats per token)',
    title='A run whose processes are killed and joined, global batch unchanged',
  )
  axes.grid(alpha=0.3)
  axes.legend(loc='center right')
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  with commands.one_line_errors():
    main()
