"""Trains a GPT with DES-LOC or a method that it is compared to.

  python run.py --config=configs/tiny.py
  python run.py --config=configs/tiny.py --config.periods.params=64 --config.workers=8
  python run.py --config=configs/tiny.py --config.method=ddp --workdir=runs/ddp
  python run.py --config=configs/gpt_1b.py --mode=plan --config.plan.bandwidth_gbps=10
  python run.py --config=configs/gpt_1b.py --mode=compile --config.topology=v5e:8x8

The same command with the same --workdir resumes a run that was stopped.
"""

import pathlib

from absl import app, flags, logging
from ml_collections import config_flags

from desloc_jax.train import cli

try:
  _CONFIG = config_flags.DEFINE_config_file('config', None, 'A file of configs/.')
except Exception as error:  # Files that --flagfile names are read here already.
  cli.fail(error)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where results go; default runs/NAME_OF_CONFIG.')
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'HOST:PORT of process 0, if the run is of several processes. Slurm, Open MPI 4, Kubernetes and TPU '
  'pods tell it by themselves.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many they are; 1 alone: none, whatever a cluster says.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of them this is, from 0.', lower_bound=0
)
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'plan', 'compile'],
  'plan: print memory, bytes and time; compile: what XLA makes of the step for the TPUs of '
  '--config.topology. Neither needs a device or data.',
)


def main(argv):
  del argv
  logging.set_verbosity(logging.WARNING)
  # Imported here, and the loop later, so that --help and values that cannot work answer at once.
  if _MODE.value != 'train':
    return print_before_booking(_MODE.value)
  from desloc_jax.hosts.joining import join
  from desloc_jax.options.checks import check_config
  from desloc_jax.paths import resolve

  config = _CONFIG.value
  check_config(config)
  name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
  workdir = resolve(_WORKDIR.value or f'runs/{name}', '--workdir')
  from desloc_jax.train.loop import train

  join(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    config.processes.start_timeout_s,
    config.processes.heartbeat_timeout_s,
  )
  train(config, workdir)


def print_before_booking(mode):
  import jax

  jax.config.update('jax_platforms', 'cpu')  # An accelerator may be at work on something else.
  from desloc_jax import plan

  if mode == 'plan':
    print(plan.plan_text(plan.make_plan(_CONFIG.value)))
  else:
    print(plan.compiled_text(plan.compile_step(_CONFIG.value)))


if __name__ == '__main__':
  app.run(cli.exit_with_one_line(main), flags_parser=cli.parse_flags)
