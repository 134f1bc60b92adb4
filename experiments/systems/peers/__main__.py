"""Steps a second of other implementations and of ours, in turn on the same machine.

  python -m experiments.systems.peers

Makes the peers' environments in --cache at the first call, some GB, from the package registry. Each
program trains the same task, in processes of its own, on the same bytes: the toy is 2 layers of 64
on 2 workers, the larger model 4 layers of 256, forward, backward and AdamW. All are started and
compiled; then they make some steps each, one program at a time, in turns. Ratios are of one turn.
Models of peers are written here as their users write them; optimizers and averages are theirs.

Writes experiments/results/peers.csv and peers.md. Some minutes on two cores; nothing else may run.
"""

import argparse
from collections.abc import Mapping, Sequence
import contextlib
import pathlib
import statistics
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from desloc_jax import commands
from desloc_jax.commands import Option
from desloc_jax.data.reading.documents import read_documents
from desloc_jax.logs.metrics import format_bytes
from desloc_jax.logs.workdir import write_text
from desloc_jax.tables import align
from desloc_jax.valid import at_least
from experiments.report import check_table_stays, csv_text, markdown, RESULTS, rows_in
from experiments.systems.peers.environments import environment, NotHere, python_of
from experiments.systems.peers.running import ProgramFailed, Running
from experiments.systems.peers.task import Task, TASKS

TURNS = 7  # At least, in the table.
_BATCHES = 200  # Of tokens, which come again and again.


class Program(NamedTuple):
  """A contender in a task.

  Attributes:
    name: of the row.
    module: beside this one.
    environment: of `ENVIRONMENTS`; '': ours.
    argument: of the module.
    goal: ours is to make at least so many times its steps; 0: none.
  """

  name: str
  module: str
  environment: str = ''
  argument: str = ''
  goal: float = 0


# Of each task, ours that others are compared with first.
PROGRAMS = {
  'toy': (
    Program('ours, diloco', 'ours', argument='diloco'),
    Program('ours, desloc', 'ours', argument='desloc'),
    Program('torchft DiLoCo', 'torchft_diloco', 'torch', goal=1.2),
    Program('MaxText DiLoCo', 'maxtext_diloco', 'maxtext', goal=1.5),
  ),
  'larger': (
    Program('ours', 'ours', argument='ddp'),
    Program('PyTorch eager', 'torch_gpt', 'torch', goal=0.95),
  ),
}


def tokens_of(task: Task) -> np.ndarray:
  """Returns uint8 [batches, workers, sequences, seq_len + 1], of the built-in text."""
  shape = (_BATCHES, task.workers, task.sequences, task.seq_len + 1)
  text = '\n'.join(document.text for document in read_documents('sotu')).encode()
  starts = np.random.default_rng(0).integers(len(text) - task.seq_len, size=shape[:-1])
  return np.frombuffer(text, np.uint8)[starts[..., None] + np.arange(task.seq_len + 1)]


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
  """Returns a row for each program of a task; one that cannot run has 'why not' alone."""
  task, rows, running = TASKS[name], [], {}
  cache = pathlib.Path(options.cache).expanduser()
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    tokens = pathlib.Path(folder) / 'tokens.npy'
    np.save(tokens, tokens_of(task))
    for program in PROGRAMS[name]:
      row: dict[str, Any] = {'task': name, 'program': program.name}
      rows.append(row)
      try:
        python = (
          python_of(program.environment, cache, options.pythons)
          if program.environment
          else sys.executable
        )
        command = [python, '-m', f'{__package__}.{program.module}', name, str(tokens)]
        command += [program.argument] if program.argument else []
        one = Running(command, environment())
        stack.callback(one.end)
        row |= one.listen()
        running[program.name] = one
      except (NotHere, ProgramFailed) as error:
        row['why not'] = str(error)
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    for _ in tqdm(range(options.turns), f'turns of {name}', leave=False):
      for program, one in running.items():
        one.ask(task.turn)
        answers[program].append(one.listen())
  rates = {name: [task.turn / turn['seconds'] for turn in of] for name, of in answers.items()}
  first = rates[PROGRAMS[name][0].name]
  for row, program in zip(rows, PROGRAMS[name], strict=True):
    if program.name in running:
      row |= _summary(rates[program.name], first, answers[program.name][-1], program.goal)
  return rows


def _summary(
  rates: Sequence[float], ours: Sequence[float], last: Mapping[str, float], goal: float
) -> dict[str, Any]:
  ratios = [a / b for a, b in zip(ours, rates, strict=True)]
  return {
    'turns': len(rates),
    'steps_per_s': statistics.median(rates),
    'slowest': min(rates),
    'fastest': max(rates),
    'ours_over_it': statistics.median(ratios),
    'least': min(ratios),
    'most': max(ratios),
    'goal': goal or '',
    'loss': last['loss'],
    'memory_bytes': last['memory_bytes'],
  }


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Returns the cells of the table, the first row as header."""
  header = [
    'task', 'program', 'steps/s', 'range', 'ours / it', 'range', 'goal', 'compiled in', 'started in',
    'an average', 'loss', 'memory', 'versions',
  ]  # fmt: skip
  cells = [header]
  for row in rows:
    if 'why not' in row:
      cells.append([row['task'], row['program'], 'not run', *[''] * 9, row['why not']])
      continue
    sent, compiled = row.get('payload_bytes'), row.get('compile_s')
    cells.append(
      [
        row['task'],
        row['program'],
        f'{row["steps_per_s"]:.1f}',
        f'{row["slowest"]:.1f} to {row["fastest"]:.1f}',
        f'{row["ours_over_it"]:.2f}',
        f'{row["least"]:.2f} to {row["most"]:.2f}',
        f'{row["goal"]}',
        f'{compiled:.1f} s' if compiled else '',
        f'{row["start_s"]:.1f} s',
        format_bytes(sent) if sent else '',
        f'{row["loss"]:.3f}',
        format_bytes(row['memory_bytes']),
        row['versions'],
      ]
    )
  return cells


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the options of the command line."""
  return commands.parse(
    'experiments.systems.peers',
    __doc__,
    argv,
    turns=Option(TURNS, 'of each program', at_least(5)),
    cache=Option(pathlib.Path('~/.cache/desloc_jax/peers'), 'folder of the environments'),
    pythons=Option([sys.executable, 'python3.12', 'python3.13'], 'that environments are made by'),
    results=Option(RESULTS, 'folder of the table'),
  )


def main(options: argparse.Namespace) -> None:
  """Measures all tasks, writes the rows and prints the table."""
  rows, results = [], pathlib.Path(options.results)
  check_table_stays(results / 'peers.csv', turns=(min(options.turns, TURNS), TURNS))
  for name in TASKS:
    rows += measure(name, options)
  cells = table(rows)
  missing = [row['program'] for row in rows if 'why not' in row]
  if missing and rows_in(results / 'peers.csv'):
    print(f'{align(cells)}\nNot run: {", ".join(missing)}. The tables in {results} stay.')
    return
  results.mkdir(parents=True, exist_ok=True)
  write_text(results / 'peers.csv', csv_text(rows))
  write_text(results / 'peers.md', markdown(cells) + '\n')
  print(align(cells))


if __name__ == '__main__':
  with commands.one_line_errors():
    main(parse())
