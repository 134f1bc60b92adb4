"""A run of an experiment, where its files are, and what became of it."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from typing import Any

from ml_collections import config_dict

from desloc_jax.logs.metrics import read_metrics
from desloc_jax.logs.workdir import CHECKPOINTS
from desloc_jax.model import flops_per_token
from desloc_jax.options.batch import batch_of
from desloc_jax.options.changes import restart_words
from desloc_jax.options.values import flatten, model_config

RESULT_FILE = 'result.json'
# A restart may change these, but what is recorded depends on them.
_RECORDED = ('stop_at', 'log_every', 'eval.')


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One training run of an experiment.

  Attributes:
    labels: what sets it apart from the experiment's other runs, by column; seeds do not.
    config: of the trainer.
    after: a run that ends early and whose last checkpoint this one goes on from; what differs must
      be in `restore.allow`.
    keeps_checkpoints: for an `after`; else they are deleted at the end.
    measure: of the run's folder, before its checkpoints are deleted: what it returns, of JSON
      types, is the result's `summary['measured']`.
  """

  labels: dict[str, Any]
  config: config_dict.ConfigDict
  after: 'Run | None' = None
  keeps_checkpoints: bool = False
  measure: Callable[[pathlib.Path], Any] | None = None

  @functools.cached_property
  def key(self) -> str:
    """A hash of all that the result depends on."""
    counts = lambda name: name.startswith(_RECORDED) or 'always' not in restart_words(name)
    options = {name: value for name, value in flatten(self.config).items() if counts(name)}
    measured = self.measure and f'{self.measure.__module__}.{self.measure.__qualname__}'
    text = json.dumps([options, self.after and self.after.key, measured], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  @property
  def name(self) -> str:
    """The labels and the seed, for the screen."""
    labels = {name: value for name, value in self.labels.items() if name != 'seed'}
    parts = [f'{v}' if name == 'variant' else f'{name} {v}' for name, v in labels.items()]
    return ', '.join([*parts, f'seed {self.config.seed}'])

  @property
  def last_step(self) -> int:
    """The step that it ends at."""
    return self.config.stop_at or self.config.steps

  @property
  def arithmetic(self) -> float:
    """Floating-point operations, about: for the time that it takes beside others."""
    config = self.config
    flops = flops_per_token(model_config(config, vocab_size=256))
    tokens = batch_of(config).tokens
    return flops * tokens * (self.last_step - (self.after.last_step if self.after else 0))

  def folder(self, runs: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the run among `runs`."""
    return runs / f'{self.config.method}-{self.key}'


@dataclasses.dataclass(frozen=True)
class Result:
  """What became of a run.

  Attributes:
    run: that was trained.
    folder: of its files.
    summary: as in summary.json; of a run that diverged, as far as it came.
    diverged: why it stopped before its end; empty: it did not.
    seconds: of the training, compilation included, since it was last interrupted.
  """

  run: Run
  folder: pathlib.Path
  summary: dict[str, Any]
  diverged: str
  seconds: float

  @property
  def loss(self) -> float:
    """Validation loss of the mean of the workers' models at the end, nats per token.

    It is the consensus where the run ends with a sync. Infinite if the run diverged.
    """
    if self.diverged:
      return math.inf
    return self.lines[-1].get('val_loss_local_mean', self.summary['val_loss'])

  @property
  def seed(self) -> int:
    return self.run.config.seed

  @functools.cached_property
  def lines(self) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return read_metrics(self.folder)


def with_those_before(runs: Sequence[Run]) -> list[Run]:
  """Returns the runs, each once, and those that they go on from before them."""
  found: dict[str, Run] = {}

  def add(run: Run) -> None:
    if run.after:
      add(run.after)
    found[run.key] = run if run.key not in found or run.keeps_checkpoints else found[run.key]

  for run in runs:
    add(run)
  return list(found.values())


def is_done(run: Run, folder: pathlib.Path) -> bool:
  """Returns whether there is all that is wanted of a run."""
  if not (run.folder(folder) / RESULT_FILE).exists():
    return False
  if not run.keeps_checkpoints or (run.folder(folder) / CHECKPOINTS).exists():
    return True
  return bool(read_result(run, folder).diverged)  # It has none to keep.


def read_result(run: Run, folder: pathlib.Path) -> Result:
  """Returns the result of a run that is done."""
  workdir = run.folder(folder)
  return Result(run, workdir, **json.loads((workdir / RESULT_FILE).read_text()))
