"""Starts the processes of one run on this machine, and waits for what they do."""

from collections.abc import Mapping, Sequence
import os
import pathlib
import socket
import subprocess
import sys
import time

from desloc_jax.logs.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent


def start(
  workers: int,
  workdir: pathlib.Path,
  options: Mapping[str, object],
  processes: int,
  *,
  config: str = 'configs/tiny.py',
  host: str = '127.0.0.1',
  before: Sequence[Sequence[str]] = (),
  devices: int = 1,
) -> list[subprocess.Popen]:
  """Starts the processes of one run of so many workers; returns them.

  Args:
    workers: of the run.
    workdir: of the run.
    options: of the config, by dotted name.
    processes: how many.
    config: file.
    host: address of process 0.
    before: for each process, what stands before its command, such as where it is to run.
    devices: virtual CPU devices of each process.
  """
  command = ['run.py', f'--workdir={workdir}', *config_arguments(config, options, workers)]
  return start_command(command, processes, host=host, before=before, devices=devices)


def config_arguments(config: str, options: Mapping[str, object], workers: int) -> list[str]:
  """Returns the arguments of a config file with these options, by dotted name."""
  values = {**options, 'workers': workers}
  return [f'--config={config}', *(f'--config.{name}={value}' for name, value in values.items())]


def start_command(
  command: Sequence[str],
  processes: int,
  *,
  host: str = '127.0.0.1',
  before: Sequence[Sequence[str]] = (),
  devices: int = 1,
) -> list[subprocess.Popen]:
  """Starts `python COMMAND` as so many processes that train together; see `start`.

  They have the variables of this process, XLA_FLAGS too.
  """
  address = f'{host}:{free_port()}'
  flags = os.environ.get('XLA_FLAGS', '')
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'TQDM_DISABLE': '1',  # A bar that nobody reads would fill the pipe.
    'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={devices}',
  }
  started = []
  for index in range(processes):
    member = [f'--coordinator={address}', f'--num_processes={processes}', f'--process_id={index}']
    started.append(
      subprocess.Popen(
        [
          *(before[index] if before else ()),
          sys.executable,
          *command,
          *(member if processes > 1 else []),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )  # fmt: skip
    )
  return started


def free_port() -> int:
  """Returns a port that nobody listens at."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def last_step(workdir: pathlib.Path) -> int:
  """Returns the newest step in the metrics of a run, 0 before there is one."""
  lines = read_metrics(workdir) if (workdir / 'metrics.jsonl').exists() else []
  return lines[-1]['step'] if lines else 0


def wait_for_step(
  workdir: pathlib.Path, step: int, processes: Sequence[subprocess.Popen], timeout: float = 300
) -> None:
  """Waits until a run has logged `step`.

  Raises:
    RuntimeError: a process ended before, or it took too long.
  """
  deadline = time.monotonic() + timeout
  while last_step(workdir) < step:
    if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
      raise RuntimeError(f'step {step} was not reached: {kill(processes)}')
    time.sleep(0.1)


def kill(processes: Sequence[subprocess.Popen]) -> list[str]:
  """Ends processes at once; returns what they had printed."""
  for process in processes:
    process.kill()
  return [text for process in processes for text in process.communicate() if text]
