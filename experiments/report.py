"""What an experiment leaves: results.csv, a plot, a table, and the paper's claims as checks."""

from collections.abc import Callable, Mapping, Sequence
import csv
import dataclasses
import io
import json
import math
import pathlib
import statistics
from typing import Any

from matplotlib.figure import Figure
from scipy import stats

from desloc_jax.errors import UserError
from desloc_jax.files import atomic_write
from desloc_jax.logs.metrics import format_bytes
from desloc_jax.logs.workdir import write_text
from desloc_jax.options.table import default_config
from desloc_jax.options.values import flatten
from desloc_jax.tables import align
from experiments.runs import Result

RESULTS = pathlib.Path('experiments/results')
CONFIDENCE = 0.95
# Of a summary, in results.csv.
_SUMMARY = (
  'steps', 'tokens', 'parameters', 'workers', 'train_loss', 'val_loss', 'bits_per_byte',
  'bytes_per_worker', 'ddp_ratio', 'local_adam_ratio', 'tokens_per_s', 'device',
)  # fmt: skip
Groups = Mapping[str, Sequence[Result]]


@dataclasses.dataclass(frozen=True)
class Check:
  """A claim and what was measured of it, once a seed.

  Attributes:
    claim: in words, with the numbers that it names.
    values: one a seed; not finite where a run diverged.
    at_least: the claim holds for values from this on.
    at_most: the claim holds for values up to this.
    unit: written behind numbers.
    paper: its value, if it prints one.
    exact: whether values are counted, such as bytes: then all of them count, and no interval.
  """

  claim: str
  values: Sequence[float]
  at_least: float = -math.inf
  at_most: float = math.inf
  unit: str = ''
  paper: str = ''
  exact: bool = False

  @property
  def interval(self) -> tuple[float, float]:
    """The confidence interval of the mean, by Student's t."""
    return (min(self.values), max(self.values)) if self.exact else confidence_interval(self.values)

  @property
  def verdict(self) -> str:
    """'holds' or 'does not hold' if all of the interval says so, else 'open'."""
    if not all(map(math.isfinite, self.values)):
      return 'does not hold'
    low, high = self.interval
    if low >= self.at_least and high <= self.at_most:
      return 'holds'
    outside = high < self.at_least or low > self.at_most
    return 'does not hold' if outside or self.exact else 'open'

  @property
  def measured(self) -> str:
    """The mean in words, with what is known of it."""
    n = len(self.values)
    diverged = n - sum(map(math.isfinite, self.values))
    if diverged:
      return f'{diverged} of {n} runs diverged'
    low, high = self.interval
    between = f'{low:.3g} to {high:.3g}{self.unit}'
    if self.exact:
      spread = f'counted, {between}' if low < high else 'counted'
    else:
      spread = f'n = {n}, 95% CI {between}' if n > 1 else 'n = 1'
    paper = f'; paper: {self.paper}' if self.paper else ''
    return f'{statistics.mean(self.values):.3g}{self.unit} ({spread}{paper})'

  def __str__(self) -> str:
    return f'{self.claim}: {self.measured}: {self.verdict}'


@dataclasses.dataclass(frozen=True)
class Report:
  """What an experiment found.

  Attributes:
    title: one line.
    rows: of results.csv, one a run.
    table: cells as text, the header first.
    checks: of the paper's claims.
    figure: that stands by itself.
    notes: below the table.
  """

  title: str
  rows: Sequence[Mapping[str, Any]]
  table: Sequence[Sequence[str]]
  checks: Sequence[Check]
  figure: Figure
  notes: Sequence[str] = ()


def check_table_stays(path: pathlib.Path, **options: tuple[Any, Any]) -> None:
  """Checks that a table that is here is not replaced by one of a shorter or another measurement.

  Args:
    path: of the table, which may not be there. Only those of the repository are looked after.
    **options: each what the command line says, and what the table is made with.

  Raises:
    UserError: it would be.
  """
  for name, (given, usual) in options.items():
    if given != usual and path.exists() and path.parent.resolve() == RESULTS.resolve():
      raise UserError(
        f'--{name}={given} would replace {path}, which is of --{name}={usual}. Give another --results.'
      )


def write(report: Report, folder: pathlib.Path, name: str, command: str) -> None:
  """Writes results.csv, NAME.png and results.md into `folder`, each whole or not at all.

  Below the plot are the checks of what the paper has a value of.

  Raises:
    UserError: they cannot be written.
  """
  write_text(folder / 'results.csv', csv_text(report.rows))
  if beside_paper := [str(check) for check in report.checks if check.paper]:
    report.figure.supxlabel('\n'.join(beside_paper), fontsize='small')
  with atomic_write(folder / f'{name}.png') as file:
    report.figure.savefig(file, dpi=120, format='png')
  parts = [
    f'# {report.title}',
    f'`{command}`',
    f'![{report.title}]({name}.png)',
    markdown(report.table),
    *report.notes,
    '\n'.join(f'- {check}' for check in report.checks),
  ]
  write_text(folder / 'results.md', '\n\n'.join(filter(None, parts)) + '\n')


def text(report: Report) -> str:
  """Returns a report for the screen."""
  return '\n'.join([report.title, align(report.table), *report.notes, *map(str, report.checks)])


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
  """Returns the 95% confidence interval of the mean, without end for a single value."""
  mean = statistics.mean(values)
  if len(values) < 2:
    return -math.inf, math.inf
  error = statistics.stdev(values) / math.sqrt(len(values))
  half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
  return mean - half, mean + half


def mean_spread(values: Sequence[float], digits: int = 4) -> str:
  """Returns 'mean ± standard deviation', the mean alone of a single value."""
  finite = [value for value in values if math.isfinite(value)]
  lost = f', {len(values) - len(finite)} diverged' if len(finite) < len(values) else ''
  if not finite:
    return 'diverged'
  spread = f' ± {statistics.stdev(finite):.{digits}f}' if len(finite) > 1 else ''
  return f'{statistics.mean(finite):.{digits}f}{spread}{lost}'


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns rows as CSV, with all columns that one of them has."""
  file = io.StringIO()
  writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue().replace('\r\n', '\n')


def write_rows(rows: Sequence[Sequence[Any]], path: pathlib.Path) -> None:
  """Writes a CSV file; the first row names the columns."""
  columns, *rest = rows
  write_text(path, csv_text([dict(zip(columns, row, strict=True)) for row in rest]))


def rows_in(path: pathlib.Path) -> int:
  """Returns how many rows a CSV file has below its header, 0 where there is none."""
  if not path.exists():
    return 0
  with path.open(newline='') as file:
    return len(list(csv.DictReader(file)))


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Returns rows of cells as a table, the first row as header."""
  cells = [[cell.replace('|', r'\|') for cell in row] for row in rows]
  lines = [f'| {" | ".join(row)} |' for row in cells]
  rule = '|---' + '|---:' * (len(rows[0]) - 1) + '|'
  return '\n'.join([lines[0], rule, *lines[1:]])


def rows_of(results: Sequence[Result]) -> list[dict[str, Any]]:
  """Returns a row a run: labels, seed, what came out, versions, and every option that is set."""
  defaults = flatten(default_config())
  rows = []
  for result in results:
    options = flatten(result.run.config).items()
    changed = {name: value for name, value in options if value != defaults.get(name)}
    rows.append({
      **result.run.labels,
      'seed': result.seed,
      'loss': result.loss,
      **{name: result.summary.get(name) for name in _SUMMARY},
      'seconds': round(result.seconds, 1),
      'diverged': result.diverged,
      'versions': ' '.join(f'{n} {v}' for n, v in result.summary['versions'].items()),
      'run': result.folder.name,
      'after': result.run.after.key if result.run.after else '',
      'config': json.dumps(changed),
    })  # fmt: skip
  return rows


def grouped(results: Sequence[Result], label: str = 'variant') -> dict[Any, list[Result]]:
  """Returns results by the value of a label, in order."""
  groups: dict[Any, list[Result]] = {}
  for result in results:
    groups.setdefault(result.run.labels[label], []).append(result)
  return groups


def loss_table(groups: Groups, what: str) -> list[tuple[str, ...]]:
  """Returns loss, bytes and speed of each group as rows of a table: mean and spread over seeds."""
  table = [(what, 'validation loss', 'bits/byte', 'bytes/worker', 'less than DDP', 'tokens/s')]
  for name, group in groups.items():
    mean = lambda key, group=group: statistics.mean(r.summary[key] or 0 for r in group)
    ratios = [result.summary.get('ddp_ratio') for result in group]
    table.append((
      str(name),
      mean_spread([result.loss for result in group]),
      f'{statistics.mean(map(_bits_per_byte, group)):.3f}',
      format_bytes(mean('bytes_per_worker')),
      f'{statistics.mean(ratios):.2f}x' if all(ratios) else '-',
      f'{statistics.median(r.summary["tokens_per_s"] for r in group):,.0f}',
    ))  # fmt: skip
  return table


def _bits_per_byte(result: Result) -> float:
  """Returns the final loss in bits per byte; the summary has it of the consensus."""
  return result.summary['bits_per_byte'] * (
    1 if result.diverged else result.loss / result.summary['val_loss']
  )


def above(
  a: Sequence[Result], b: Sequence[Result], value: Callable[[Result], float] = lambda r: r.loss
) -> list[float]:
  """Returns by how many percent `value` of `a` is above that of `b`, seed by seed."""
  return [100 * (value(x) / value(y) - 1) for x, y in _pairs(a, b)]


def times(
  a: Sequence[Result], b: Sequence[Result], value: Callable[[Result], float]
) -> list[float]:
  """Returns how many times `value` of `b` that of `a` is, seed by seed."""
  return [value(x) / value(y) for x, y in _pairs(a, b)]


def _pairs(a: Sequence[Result], b: Sequence[Result]) -> list[tuple[Result, Result]]:
  by_seed = {result.seed: result for result in b}
  return [(result, by_seed[result.seed]) for result in a]
