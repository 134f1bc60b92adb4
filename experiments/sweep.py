"""Every combination of the values of some options, drawn and in a table.

  python -m experiments.sweep --config=configs/tiny.py --config.steps=240 \\
    --sweep.periods.params=8,16,32 --sweep.method=desloc,local_adam --sweep.seed=0,1,2

  python -m experiments.sweep --scale=cpu --sweep.workers=2,4,8 --sweep.seed=0,1,2

--scale instead of a config is what the experiments run at, and shares their runs.

Each --sweep.NAME=A,B,... is an axis, and NAME an option of the trainer; values have its type. Seeds
are repetitions, of which mean and standard deviation are shown. One axis of numbers is drawn as
curves, two as a heat map, with a line or a panel for each combination of the others. Writes
results.csv, sweep.png and results.md. Finished runs are not repeated, and processes that share
--runs divide them.
"""

from collections.abc import Mapping, Sequence
import itertools
import pathlib
import re
import shlex
import sys
from typing import Any

from absl import flags, logging
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import config_dict, config_flags
import numpy as np

from desloc_jax import commands
from desloc_jax.commands import Option
from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.hosts.peers import peers
from desloc_jax.options.table import find_row, OPTIONS
from desloc_jax.options.values import option
from desloc_jax.train import cli
from experiments import command, plots
from experiments.progress import Progress
from experiments.report import loss_table, Report, rows_of
from experiments.runner import run_all
from experiments.runs import Result, Run, with_those_before
from experiments.scales import changed, make_scale, SCALES
from experiments.share import shared

Values = Mapping[str, Sequence[Any]]  # Values by option.
_BETWEEN_VALUES = re.compile(r',(?![^()]*\))')  # Not those of numbers in parentheses.
_WIDE = 8.0  # Ratio of values from which an axis is logarithmic.


def main(argv: Sequence[str]) -> None:
  parser = command.make_parser('experiments.sweep', __doc__)
  commands.add_options(
    parser,
    config=Option(str, 'a file of configs/'),
    scale=Option(str, f'instead: {", ".join(SCALES)}; gpu:sotu for the built-in text'),
    results=Option(pathlib.Path('runs/sweep'), 'folder of results'),
  )
  options, rest = parser.parse_known_args(argv[1:])
  if options.config and options.scale:
    raise UserError('--config and --scale are given; expected one of them.')
  config = make_scale(options.scale).config if options.scale else load_config(options.config)
  command.override(config, [arg for arg in rest if not arg.startswith('--sweep')])
  axes = parse_axes([arg for arg in rest if arg.startswith('--sweep')], config)
  for name in axes:
    if any(arg.startswith(f'--config.{name}=') for arg in rest):
      raise UserError(f'--config.{name} and --sweep.{name} are given; expected one of them.')
  logging.set_verbosity(logging.ERROR)
  args = command.without_option(argv[1:], '--processes')
  with shared(options.processes, 'experiments.sweep', args):
    _run_all(axes, config, options, args)


def _run_all(axes: Values, config: config_dict.ConfigDict, options, args: Sequence[str]) -> None:
  command.join(options, config)
  runs = make_runs(axes, config)
  folder = pathlib.Path(options.runs)
  results = run_all(runs, folder, Progress(with_those_before(runs), folder, command.tell))
  if peers().is_first:
    report = make_report(axes, results)
    words = shlex.join(['python', '-m', 'experiments.sweep', *args])
    command.write_report(report, pathlib.Path(options.results), 'sweep', words, options)
  peers().wait_for_all()  # Nobody leaves before the first process is through.


def load_config(path: str | None) -> config_dict.ConfigDict:
  """Returns the config of a file, as run.py would; ends the process if it cannot be loaded."""
  values = flags.FlagValues()
  argv = ['sweep', *([f'--config={path}'] if path else [])]
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  try:
    values(argv)
    cli.check_config_loaded(values)
  except Exception as error:  # A config file is a program: it may raise anything.
    cli.fail(error)
  return values['config'].value


def parse_axes(args: Sequence[str], config: config_dict.ConfigDict) -> dict[str, list[Any]]:
  """Returns the values of each option from arguments `--sweep.NAME=A,B,...`.

  Raises:
    UserError: there is none, one has no values or the same twice, or a value is of another type.
  """
  axes = {}
  for arg in args:
    name, _, values = arg.removeprefix('--sweep').removeprefix('.').partition('=')
    if find_row(name) is None:
      raise unknown_choice('--sweep option', name, OPTIONS, listed_by='--help')
    texts = [text.strip() for text in _BETWEEN_VALUES.split(values)]
    if not all(texts):
      raise UserError(f'{arg} has an empty value; expected --sweep.{name}=A,B,...')
    if name in axes:
      raise UserError(f'--sweep.{name} is given twice; expected once, with all values.')
    axes[name] = [_value(name, text, config) for text in texts]
    if len(set(axes[name])) < len(texts):
      raise UserError(f'{arg} has a value twice.')
  if not axes:
    raise UserError('there is nothing to sweep, e.g. --sweep.periods.params=8,16,32. See --help.')
  return axes


def _value(name: str, text: str, config: config_dict.ConfigDict) -> Any:
  config = changed(config, {})
  try:
    command.override(config, [f'--config.{name}={text}'])
  except UserError as error:
    raise UserError(str(error).replace('--config.', '--sweep.')) from error
  return option(config, name)


def make_runs(axes: Values, config: config_dict.ConfigDict) -> list[Run]:
  """Returns a run of each combination."""
  combinations = (
    dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
  )
  return [Run(each, changed(config, each)) for each in combinations]


def make_report(axes: Values, results: Sequence[Result]) -> Report:
  """Returns table and plot of a sweep."""
  groups = grouped(results)
  table = loss_table(groups, ', '.join(name for name in axes if name != 'seed') or 'run')
  return Report(f'Sweep over {", ".join(axes)}', rows_of(results), table, [], draw(axes, results))


def grouped(results: Sequence[Result], without: Sequence[str] = ()) -> dict[str, list[Result]]:
  """Returns results by their labels other than the seed and those in `without`."""
  groups: dict[str, list[Result]] = {}
  for result in results:
    labels = [f'{v}' for n, v in result.run.labels.items() if n not in ('seed', *without)]
    groups.setdefault(', '.join(labels), []).append(result)
  return groups


def draw(axes: Values, results: Sequence[Result]) -> Figure:
  """Draws the loss at the end over the axes of numbers, or over the combinations if there is none."""
  numbers = [
    name for name, values in axes.items() if name != 'seed' and all(map(_is_number, values))
  ]
  if len(numbers) >= 2:
    return _heat_maps(numbers[:2], results)
  figure, (panel,) = plots.panels(1, 'Mean and standard deviation over seeds', width=8)
  panel.set_ylabel(f'final {plots.LOSS}')
  if numbers:
    _curves(panel, numbers[0], axes[numbers[0]], results)
  else:
    groups = grouped(results)
    plots.mean_line(panel, list(groups), [[r.loss for r in g] for g in groups.values()], '', ls='')
    panel.tick_params(axis='x', rotation=30)
  return figure


def _curves(panel: Axes, name: str, values: Sequence[float], results: Sequence[Result]) -> None:
  for label, group in grouped(results, without=(name,)).items():
    losses = [[r.loss for r in group if r.run.labels[name] == value] for value in sorted(values)]
    plots.mean_line(panel, sorted(values), losses, label or 'all', **plots.style(label))
  panel.set(
    xlabel=name, xscale='log' if min(values) > 0 and max(values) > _WIDE * min(values) else 'linear'
  )
  panel.set_xticks(sorted(values), [f'{value:g}' for value in sorted(values)], minor=False)
  panel.minorticks_off()
  panel.legend(fontsize='small')


def _heat_maps(names: Sequence[str], results: Sequence[Result]) -> Figure:
  groups = grouped(results, without=names)
  columns, rows = ([*dict.fromkeys(r.run.labels[name] for r in results)] for name in names)
  figure, panels = plots.panels(len(groups), f'Mean final {plots.LOSS}')
  means = {
    label: np.array([
      [np.mean([r.loss for r in group if [r.run.labels[n] for n in names] == [x, y]]) for x in columns]
      for y in rows
    ])
    for label, group in groups.items()
  }  # fmt: skip
  finite = [m for each in means.values() for m in each.flat if np.isfinite(m)] or [0.0]
  for panel, (label, mean) in zip(panels, means.items(), strict=True):
    shown = np.where(np.isfinite(mean), mean, np.nan)
    image = panel.imshow(shown, origin='lower', aspect='auto', vmin=min(finite), vmax=max(finite))
    for (row, column), value in np.ndenumerate(mean):
      text = f'{value:.3f}' if np.isfinite(value) else 'diverged'
      panel.text(
        column, row, text, ha='center', va='center', bbox={'fc': 'white', 'alpha': 0.7, 'lw': 0}
      )
    panel.set(xlabel=names[0], ylabel=names[1], title=label)
    panel.set_xticks(range(len(columns)), [f'{value:g}' for value in columns])
    panel.set_yticks(range(len(rows)), [f'{value:g}' for value in rows])
    panel.grid(False)
  figure.colorbar(image, ax=panels)
  return figure


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


if __name__ == '__main__':
  cli.exit_with_one_line(main)(sys.argv)
