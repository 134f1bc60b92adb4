"""The command line that all experiments share: scale, overrides, and where runs and results go."""

import argparse
from collections.abc import Collection, Mapping, Sequence
import dataclasses
import pathlib
import shlex
import sys
import types

from absl import flags, logging
from ml_collections import config_dict, config_flags

from desloc_jax import commands
from desloc_jax.commands import Option
from desloc_jax.errors import UserError
from desloc_jax.hosts import joining
from desloc_jax.hosts.peers import peers
from desloc_jax.options.checks import check_config
from desloc_jax.options.help_text import options_help
from desloc_jax.options.values import flatten
from desloc_jax.train import cli
from desloc_jax.valid import at_least
from experiments import report as report_lib
from experiments.progress import Progress
from experiments.runner import claim, run_all
from experiments.runs import Run, with_those_before
from experiments.scales import make_scale, Scale, SCALES
from experiments.share import shared

RUNS = pathlib.Path('runs/experiments')
Experiments = Mapping[str, types.ModuleType]  # By name.


def main(experiment: types.ModuleType) -> None:
  """Runs one experiment from the command line; ends the process on an error.

  `experiment.runs(scale)` gives its runs, and `experiment.report(results, scale)` a Report.
  """
  program = experiment.__spec__.name
  name = program.rpartition('.')[2]
  run_experiments([{name: experiment}], program, experiment.__doc__)


def run_experiments(passes: Sequence[Experiments], program: str, description: str) -> None:
  """Runs experiments from the command line, one after another, with the time left of each pass.

  Args:
    passes: experiments by name; the runs of a pass may be made of what those before it have found.
    program: of the command.
    description: of the command.
  """
  cli.exit_with_one_line(lambda argv: _run(passes, program, description, argv))(sys.argv)


def _run(
  passes: Sequence[Experiments], program: str, description: str, argv: Sequence[str]
) -> None:
  options, scale = parse(program, description, argv[1:])
  logging.set_verbosity(logging.ERROR)
  rest = without_option(argv[1:], '--processes')
  with shared(options.processes, program, rest):
    join(options, scale.config)
    for experiments in passes:
      _run_all(experiments, options, scale, rest)


def _run_all(experiments, options: argparse.Namespace, scale: Scale, args: Sequence[str]) -> None:
  runs = {name: experiment.runs(scale) for name, experiment in experiments.items()}
  everything = with_those_before([run for each in runs.values() for run in each])
  made_of = {name for module in experiments.values() for name in getattr(module, 'MADE_OF', ())}
  check_followed(args, scale.config, everything, made_of)
  folder = lambda name: pathlib.Path(options.results) / f'{name}-{scale.name}'
  for name in experiments:
    peers().on_first(lambda name=name: check_kept(folder(name), runs[name], args))
  progress = Progress(everything, pathlib.Path(options.runs), tell)
  for name, experiment in experiments.items():
    results = run_all(runs[name], pathlib.Path(options.runs), progress)
    if peers().is_first:
      report = experiment.report(results, scale)
      command = shlex.join(['python', '-m', experiment.__spec__.name, *_own(args)])
      write_report(report, folder(name), name, command, options)
    peers().wait_for_all()  # Nobody leaves before the first process is through.


def write_report(
  report: report_lib.Report, folder: pathlib.Path, name: str, command: str, options
) -> None:
  """Prints a report and writes its files, which others that share the runs write too."""
  with claim(pathlib.Path(options.runs), wait=True):
    report_lib.write(report, folder, name, command)
  print(f'\n{report_lib.text(report)}\n{folder}: results.csv, {name}.png, results.md\n')


def tell(line: str) -> None:
  """Prints a line of progress, of several processes in the first alone."""
  if peers().is_first:
    print(line, flush=True)


def parse(program: str, description: str, args: Sequence[str]) -> tuple[argparse.Namespace, Scale]:
  """Returns the options of an experiment and its scale, with what --config.X overrides.

  Raises:
    UserError: an option is unknown, or its value cannot be used.
  """
  parser = make_parser(program, description)
  parser.add_argument(
    '--scale', default='cpu', help=f'{", ".join(SCALES)}; gpu:sotu for the built-in text'
  )
  commands.add_options(
    parser,
    seeds=Option(int, 'of each variant; default: of the scale', at_least(1)),
    results=Option(report_lib.RESULTS, 'results go to a folder in it'),
  )
  options, rest = parser.parse_known_args(args)
  scale = make_scale(options.scale)
  override(scale.config, rest)
  scale = scale.with_seeds(options.seeds or scale.seeds)
  return options, dataclasses.replace(scale, results=pathlib.Path(options.results))


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
  """Returns a parser of what experiments and sweeps have in common; its help lists all options."""
  parser = commands.make_parser(program, description)
  parser.epilog = f'--config.NAME=VALUE changes an option of all runs:\n{options_help()}'
  commands.add_options(
    parser,
    runs=Option(RUNS, 'folder of the runs, which processes may share'),
    processes=Option(
      1, 'so many at once on this machine, which divide runs and cores; for small runs'
    ),
  )
  add_processes(parser)
  return parser


def add_processes(parser: argparse.ArgumentParser) -> None:
  """Adds the options of one of several processes, which `join` reads."""
  commands.add_options(
    parser,
    coordinator=Option(str, 'HOST:PORT of process 0, if each run is of several processes'),
    num_processes=Option(int, 'how many they are'),
    process_id=Option(int, 'which of them this is, from 0'),
  )


def join(options: argparse.Namespace, config: config_dict.ConfigDict) -> None:
  """Joins the processes that train each run together, if there are several.

  Raises:
    UserError: only some of their three options are given, or the config cannot work.
  """
  check_config(config)
  joining.join(
    options.coordinator,
    options.num_processes,
    options.process_id,
    config.processes.start_timeout_s,
    config.processes.heartbeat_timeout_s,
    sets_aside=config.sync.behind,
  )


def override(config: config_dict.ConfigDict, args: Sequence[str]) -> None:
  """Changes options of `config` by arguments `--config.NAME=VALUE`, each to a value of its type.

  Raises:
    UserError: an argument is another one, or a value is of another type.
  """
  for arg in args:
    if not arg.startswith('--config.') or '=' not in arg:
      raise UserError(
        f'{arg} is unknown; options of runs are given as --config.NAME=VALUE. See --help.'
      )
  cli.check_option_names(args)
  values = flags.FlagValues()
  argv = ['experiment', *args]
  config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f'{error}. See --help.') from error


def check_followed(
  args: Sequence[str],
  config: config_dict.ConfigDict,
  runs: Sequence[Run],
  made_of: Collection[str] = (),
) -> None:
  """Checks that options of the command line are those of some run.

  Args:
    args: of which those that begin with --config. count.
    config: with their values.
    runs: of all experiments that the command line is of.
    made_of: options that an experiment makes others of, and that its runs do not have.

  Raises:
    UserError: there are no runs, or each has another value, which the experiment sets itself.
  """
  args = [arg for arg in args if arg.startswith('--config.')]
  options = [flatten(run.config) for run in runs] if args else []
  for arg in args:
    if not runs:
      raise UserError(f'{arg} would change nothing: this experiment trains no runs.')
    name = arg.removeprefix('--config.').partition('=')[0]
    own = [each.get(name) for each in options]
    if name not in made_of and flatten(config)[name] not in own:
      values = ', '.join(dict.fromkeys(map(str, own)))
      raise UserError(
        f'{arg} would change no run: this experiment sets {name} itself, to {values}.'
      )


def check_kept(folder: pathlib.Path, runs: Sequence[Run], args: Sequence[str]) -> None:
  """Checks that results are not replaced by those of fewer runs, or of runs with other options.

  Args:
    folder: of the results, which may be there.
    runs: of the experiment.
    args: of the command line.

  Raises:
    UserError: they would be.
  """
  before, text = report_lib.rows_in(folder / 'results.csv'), folder / 'results.md'
  lines = text.read_text().splitlines() if text.exists() else []
  line = next((line.strip('`') for line in lines if line.startswith('`python')), '')
  set_by = lambda words: {word for word in words if word.startswith('--config.')}
  if runs and before and (len(runs) < before or set_by(args) != set_by(shlex.split(line))):
    raise UserError(
      f'{folder} has the results of {before} runs, by {line!r}, which those of {len(runs)} runs of '
      'this command would replace. Give another --results, or remove that folder.'
    )


def without_option(args: Sequence[str], name: str) -> list[str]:
  """Returns arguments without `name` and its value, written as `NAME=VALUE` or `NAME VALUE`."""
  values = [i + 1 for i, arg in enumerate(args) if arg == name]
  named = lambda arg: arg == name or arg.startswith(f'{name}=')
  return [arg for i, arg in enumerate(args) if not named(arg) and i not in values]


def _own(args: Sequence[str]) -> list[str]:
  """Returns the arguments that decide what comes out, not where it goes."""
  for name in ('--runs', '--results', '--coordinator', '--num_processes', '--process_id'):
    args = without_option(args, name)
  return list(args)
