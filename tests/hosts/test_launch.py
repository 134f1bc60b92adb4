"""The examples of launch/, run as far as one machine can: the cluster around them is played."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from desloc_jax.logs.metrics import read_metrics
from experiments.several import free_port, ROOT
from tests.environment import environment

LAUNCH = ROOT / 'launch'
OPTIONS = (
  '--config=configs/tiny.py --config.steps=4 --config.seq_len=32 --config.batch_size=2 '
  '--config.model.layers=1 --config.model.width=32 --config.model.heads=2 --config.eval.sequences=4 '
  '--config.schedule.warmup_steps=1 --config.data.validation_fraction=0.2 --config.health.check=False'
).split()

# Starts two tasks on this machine with the variables that Slurm gives them.
SRUN = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
pids=()
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait $pid || code=$?; done
if [ -e "$LOSE_ONE" ]; then rm "$LOSE_ONE"; exit 4; fi
exit $code
"""


def with_commands(tmp_path, **variables):
  commands = tmp_path / 'commands'
  commands.mkdir(exist_ok=True)
  python = pathlib.Path(sys.executable).parent
  path = f'{commands}:{python}:{os.environ["PATH"]}'
  return environment(PATH=path, **variables)


def command(tmp_path, name, text):
  path = tmp_path / 'commands' / name
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def run(args, variables):
  done = subprocess.run(
    args, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == 0, done.stderr
  return done


def options(text, workdir):
  return [*OPTIONS, f'--config.data.sources.text.path={text}', f'--workdir={workdir}']


@pytest.mark.slow
def test_two_shells(text, tmp_path):
  workdir = tmp_path / 'run'
  run(['bash', LAUNCH / 'two_shells.sh', *options(text, workdir)], with_commands(tmp_path))
  assert read_metrics(workdir)[-1]['step'] == 4


@pytest.mark.slow
def test_slurm_starts_again_where_a_process_was_lost(text, tmp_path):
  command(tmp_path, 'srun', SRUN)
  workdir, lose_one = tmp_path / 'run', tmp_path / 'lose_one'
  lose_one.touch()
  variables = with_commands(
    tmp_path,
    SLURM_JOB_ID=str(free_port()),
    SLURM_JOB_NUM_NODES='2',
    SLURM_CPUS_PER_TASK='3',
    CALLS=str(tmp_path / 'calls'),
    LOSE_ONE=str(lose_one),
  )
  run(['bash', LAUNCH / 'slurm.sbatch', *options(text, workdir)], variables)
  calls = (tmp_path / 'calls').read_text().splitlines()
  assert len(calls) == 2 and calls[0] == calls[1]
  assert '--config.workers=2' in calls[0]
  assert '--cpus-per-task=3 ' in calls[0]  # Which srun does not take over from sbatch.
  assert read_metrics(workdir)[-1]['step'] == 4


@pytest.mark.slow
def test_the_command_of_the_pods(text, tmp_path):
  job = job_of_jobset()
  container = job['template']['spec']['containers'][0]
  variables = {each['name']: each['value'] for each in container['env']}
  assert int(variables['PROCESSES']) == job['parallelism'] == job['completions']
  variables |= {'COORDINATOR': f'127.0.0.1:{free_port()}', 'PROCESSES': '2'}
  variables |= {'OPTIONS': ' '.join(options(text, tmp_path / 'run'))}
  pods = [
    subprocess.Popen(
      [*container['command'], *container['args']],
      cwd=ROOT,
      env=with_commands(
        tmp_path, **variables, JOB_COMPLETION_INDEX=str(i), KUBERNETES_SERVICE_HOST='x'
      ),
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  errors = [pod.communicate(timeout=300)[1] for pod in pods]
  assert [pod.returncode for pod in pods] == [0, 0], errors
  assert read_metrics(tmp_path / 'run')[-1]['step'] == 4


def job_of_jobset():
  jobset = yaml.safe_load((LAUNCH / 'kubernetes.yaml').read_text())
  (replicated,) = jobset['spec']['replicatedJobs']
  return replicated['template']['spec'] | {
    'names': (jobset['metadata']['name'], replicated['name'])
  }


def test_the_address_of_the_first_pod():
  """NAME-REPLICATEDJOB-JOB-POD, in the domain that a JobSet has by its name."""
  job = job_of_jobset()
  jobset, name = job['names']
  (container,) = job['template']['spec']['containers']
  variables = {each['name']: each['value'] for each in container['env']}
  assert variables['COORDINATOR'].startswith(f'{jobset}-{name}-0-0.{jobset}:')
  assert job['completionMode'] == 'Indexed'


def test_tpu_hosts_get_the_options_as_they_are(tmp_path):
  command(tmp_path, 'gcloud', '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
  variables = with_commands(tmp_path, TPU='pod', ZONE='zone')
  done = run(['bash', LAUNCH / 'tpu_pod.sh', '--config=a b', '--workdir=/x'], variables)
  words = done.stdout.splitlines()
  assert '--worker=all' in words
  assert words[-1] == r'--command=cd ~/desloc_jax && python run.py --config=a\ b --workdir=/x '


@pytest.mark.parametrize('script', sorted(p.name for p in LAUNCH.iterdir() if p.suffix != '.yaml'))
def test_the_scripts_say_how_to_call_them(script):
  text = (LAUNCH / script).read_text()
  assert re.search(rf'launch/{re.escape(script)} .*--config=', text)
  subprocess.run(['bash', '-n', LAUNCH / script], check=True)
