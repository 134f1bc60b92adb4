"""The command line that trains: `python run.py`, and `python -m desloc_jax train` where installed."""

from collections.abc import Sequence
import pathlib

from absl import app, flags, logging
from ml_collections import config_flags

from desloc_jax import starting
from desloc_jax.hosts import ending
from desloc_jax.train import cli

USAGE = """\
Trains a GPT with DES-LOC or a method that it is compared to.

  {0} --config=configs/tiny.py
  {0} --config=configs/tiny.py --config.periods.params=64 --config.workers=8
  {0} --config=configs/tiny.py --config.method=ddp --workdir=runs/ddp
  {0} --config=configs/gpt.py:1b --mode=plan --config.plan.bandwidth_gbps=10
  {0} --config=configs/gpt.py:1b --mode=compile --config.topology=v5e:8x8

The same command with the same --workdir resumes a run that was stopped.
"""


def main(args: Sequence[str], program: str = 'python -m desloc_jax train') -> None:
  """Trains, plans or compiles as the arguments say; ends the process."""
  argv = [program, *cli.find_config_files(args)]
  _define_flags(argv)
  parse = lambda argv: cli.parse_flags(argv, __name__, USAGE.format(program))
  app.run(cli.exit_with_one_line(_run), argv, flags_parser=parse)


def _define_flags(argv: Sequence[str]) -> None:
  try:
    cli.check_one_config(argv)
    config_flags.DEFINE_config_file(
      'config', None, 'A file of configs/, and behind a colon what it is to give.', sys_argv=argv
    )
  except Exception as error:  # Files that --flagfile names are read here already.
    cli.fail(error)
  flags.DEFINE_string('workdir', None, 'Where results go; default runs/NAME_OF_CONFIG.')
  flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT of process 0, if the run is of several processes. Slurm, Open MPI 4, Kubernetes and '
    'TPU pods tell it by themselves.',
  )
  flags.DEFINE_integer(
    'num_processes',
    None,
    'How many they are. --num_processes=1 by itself trains alone, in a cluster too.',
    lower_bound=1,
  )
  flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.', lower_bound=0)
  flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'plan', 'compile'],
    'plan: print memory, bytes and time; compile: what XLA makes of the step for the TPUs of '
    '--config.topology. Neither needs a device or data.',
  )


def _run(argv: Sequence[str]) -> None:
  del argv
  starting.ctrl_c_ends_the_process()  # Until the run takes it over there is nothing to save.
  values = flags.FLAGS
  logging.set_verbosity(logging.WARNING)
  given = config_flags.get_override_values(values['config'])
  # Imported here, and the loop later, so that --help and values that cannot work answer at once.
  if values.mode != 'train':
    return _print_before_booking(values.mode, values.config, given)
  from desloc_jax.hosts.joining import join
  from desloc_jax.options.checks import check_config
  from desloc_jax.paths import resolve

  config = values.config
  check_config(config)
  path, *argument = config_flags.get_config_filename(values['config']).split(':')
  name = '_'.join([pathlib.Path(path).stem, *argument]).replace('/', '_')
  workdir = resolve(f'runs/{name}' if values.workdir is None else values.workdir, '--workdir')
  from desloc_jax.train.loop import train

  join(
    values.coordinator,
    values.num_processes,
    values.process_id,
    config.processes.start_timeout_s,
    config.processes.heartbeat_timeout_s,
    sets_aside=config.sync.behind,
  )
  ending.belong_to_run(ends_with_it=True)
  train(config, workdir, given=given)


def _print_before_booking(mode, config, given) -> None:
  import jax

  jax.config.update('jax_platforms', 'cpu')  # An accelerator may be at work on something else.
  from desloc_jax import plan
  from desloc_jax.options.effect import tell_of_no_effect

  if mode == 'plan':
    text = plan.plan_text(plan.make_plan(config))
  else:
    text = plan.compiled_text(plan.compile_step(config))
  tell_of_no_effect(config, given, mode)
  print(text)
