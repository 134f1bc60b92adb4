"""The language model of the Byz-NSGDM paper (arXiv:2603.12512): 20 workers, of which 3 lie, K_x = 1.

  python -m experiments.extensions.byzantine --seeds=3
  python -m experiments.extensions.byzantine --scale=gpu:sotu --seeds=3 --config.data.sources.text.path=NAME.txt

The second is the paper's setting: 10,000 steps of 64 x 128 characters a worker, a GPT of 4 layers of 128,
and Shakespeare's characters (the 1.1 MB of char-rnn's `tinyshakespeare`, which does not come with the
package). The first has the scale's model and half of its steps, on the built-in text. Text is cut into as many
parts as there are honest workers, one after another; a liar reads what an honest one does.

Averages are of the n - f nearest neighbours first. Where the paper takes the best of four rates for each
cell, here Byz-NSGDM has the largest, .5 (the small runs 2), and SGD .1. Other here: a tenth of the text is
held out by pieces, not its end; SiLU and rotary positions, no dropout; in the authors' code mimic sends -2
times the honest mean, here what an honest worker sends.
"""

from collections.abc import Iterator, Sequence
import json
import math
import pathlib
import sys

from ml_collections import config_dict

from desloc_jax.data.reading.documents import read_documents
from desloc_jax.logs.workdir import write_text
from experiments import command, plots
from experiments.report import above, Check, mean_spread, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import changed, Options, Scale

MADE_OF = ('data.sources.text.path',)  # Options that runs are made of, and do not have.
WORKERS, LIARS = 20, 3
HONEST = WORKERS - LIARS
FOLDER = pathlib.Path('runs/parts')
PIECE = 500
STEPS = 10_000  # Of the paper.
BUILT_IN = 'sotu'
ATTACKS = ('flip', 'mimic', 'alie')
AVERAGES = ('geometric_median', 'median', 'krum')
OPTIMIZERS = ('Byz-NSGDM', 'SGD')
# Perplexities of the paper, by average and optimizer, for each of the attacks.
PAPER = {
  ('geometric_median', 'Byz-NSGDM'): (10.22, 10.09, 10.59),
  ('median', 'Byz-NSGDM'): (10.34, 10.08, 10.66),
  ('krum', 'Byz-NSGDM'): (10.34, 10.65, 10.73),
  ('geometric_median', 'SGD'): (11.64, 11.40, 12.20),
}


def runs(scale: Scale) -> list[Run]:
  """Returns a run of each average, optimizer and attack, for each seed."""
  config = with_parts(changed(scale.config, settings(scale)))
  first_step = 0.5 if is_theirs(scale) else 2.0  # In few steps a longer one.
  return [
    Run(
      {'variant': f'{average}, {optimizer}', 'attack': attack},
      changed(config, {**options_of(average, optimizer, attack, first_step), 'seed': seed}),
    )
    for seed in range(scale.seeds)
    for average in AVERAGES
    for optimizer in OPTIMIZERS
    for attack in ATTACKS
  ]


def is_theirs(scale: Scale) -> bool:
  """Returns whether the runs have the paper's size."""
  return scale.name in ('gpu', 'paper')


def settings(scale: Scale) -> Options:
  """Returns what the runs have in common."""
  shared = {
    'workers': WORKERS, 'periods.params': 1, 'accumulation': 1, 'data.tokenizer': 'bytes',
    'data.validation_fraction': 0.1, 'eval.every': 0, 'schedule.name': 'constant',
    'schedule.warmup_steps': 0, 'inner.clip_norm': 0.0, 'inner.weight_decay': 0.0, 'checkpoint.every': 0,
    'model.vocab_size': 0,
  }  # fmt: skip
  if is_theirs(scale):
    return shared | {
      'steps': STEPS, 'batch_size': 64, 'seq_len': 128, 'model.seq_len': 128, 'model.layers': 4,
      'model.width': 128, 'model.heads': 4, 'model.compute_dtype': 'float32',
    }  # fmt: skip
  batch_size = max(1, scale.config.batch_size * scale.config.workers // WORKERS)
  return shared | {'steps': scale.config.steps // 2, 'batch_size': batch_size}


def options_of(average: str, optimizer: str, attack: str, first_step: float) -> Options:
  """Returns what sets a run apart; `first_step` is the length of Byz-NSGDM's first."""
  options = {
    'sync.params': average, 'sync.neighbours': True, 'sync.byzantine': LIARS,
    'failures.attack': f'{HONEST}-{WORKERS - 1}:{attack}', 'inner.name': 'sgd',
    'inner.momentum': 0.9, 'inner.learning_rate': 0.1,
  }  # fmt: skip
  if optimizer == 'SGD':
    return options | {'method': 'local_sgd'}
  return options | {'method': 'byz_nsgdm', 'outer.learning_rate': first_step}


def with_parts(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """Returns the config with a part of its text for each honest worker; of a mixture the built-in one."""
  first, *more = config.data.sources.to_dict().values()
  text = BUILT_IN if more else first['path']
  path = FOLDER / ('built_in.jsonl' if text == BUILT_IN else f'of_{pathlib.Path(text).stem}.jsonl')
  if text != BUILT_IN or not path.exists():  # Others may have changed.
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, ''.join(map(_line, *zip(*_parts(text), strict=True))))
  own = lambda part: tuple(float(worker % HONEST == part) for worker in range(WORKERS))
  sources = {
    f'part_{part}': {
      **first, 'path': str(path), 'where': f'part:{part}-{part}', 'weight': 1.0,
      'worker_weights': own(part),
    }
    for part in range(HONEST)
  }  # fmt: skip
  with config.unlocked():
    config.data.sources = config_dict.ConfigDict(sources)
  return config


def _line(part: int, text: str) -> str:
  return json.dumps({'part': part, 'text': text}) + '\n'


def _parts(path: str) -> list[tuple[int, str]]:
  """Returns the pieces of a text, and the part of each."""
  pieces = [piece for document in read_documents(path) for piece in _pieces(document.text)]
  total, before, parts = sum(map(len, pieces)), 0, []
  for piece in pieces:
    parts.append((HONEST * before // total, piece))
    before += len(piece)
  return parts


def _pieces(text: str) -> Iterator[str]:
  """Yields pieces of whole lines, of `PIECE` characters or some more, so that some can be held out."""
  piece = ''
  for line in text.splitlines(keepends=True):
    piece += line
    if len(piece) >= PIECE:
      yield piece
      piece = ''
  if piece:
    yield piece


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns perplexities beside the paper's."""
  by: dict[tuple[str, str], list[Result]] = {}
  for result in results:
    by.setdefault((result.run.labels['variant'], result.run.labels['attack']), []).append(result)
  rows = [(average, optimizer) for optimizer in OPTIMIZERS for average in AVERAGES]
  perplexities = lambda row, attack: [math.exp(min(20, r.loss)) for r in by[', '.join(row), attack]]
  table = [('average', 'optimizer', *ATTACKS, "the paper's")]
  for row in rows:
    theirs = ' / '.join(f'{value:.2f}' for value in PAPER.get(row, ()))
    table.append((*row, *(mean_spread(perplexities(row, a), 2) for a in ATTACKS), theirs or '-'))
  checks = [
    Check(f"{attack}, geometric median: Byz-NSGDM's loss is below that of SGD",
          above(by['geometric_median, Byz-NSGDM', attack], by['geometric_median, SGD', attack]),
          at_most=0, unit='%', paper='perplexity {} to {}'.format(
            *(PAPER['geometric_median', optimizer][i] for optimizer in OPTIMIZERS)))
    for i, attack in enumerate(ATTACKS)
  ]  # fmt: skip
  if is_theirs(scale):
    checks += [
      Check(f"{', '.join(row)}, {attack}: the perplexity is within 5% of the paper's",
            perplexities(row, attack), 0.95 * value, 1.05 * value, paper=str(value))
      for row, values in PAPER.items()
      for attack, value in zip(ATTACKS, values, strict=True)
    ]  # fmt: skip
  figure, (panel,) = plots.panels(
    1, f'{LIARS} of {WORKERS} workers lie, K_x = 1: mean and deviation of {scale.seeds} seeds', 9
  )
  for row in rows:
    plots.mean_line(
      panel, range(len(ATTACKS)), [perplexities(row, a) for a in ATTACKS], ', '.join(row)
    )
  panel.set_xticks(range(len(ATTACKS)), ATTACKS)
  panel.set(ylabel='validation perplexity')
  panel.legend(fontsize='small')
  return Report('Byz-NSGDM beside SGD', rows_of(results), table, checks, figure)


if __name__ == '__main__':
  command.main(sys.modules[__name__])
