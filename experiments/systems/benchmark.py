"""What DES-LOC costs on top of its inner optimizer: time of a local step, memory, tokens/s.

  python -m experiments.systems.benchmark --config=configs/tiny.py --rounds=15

Three programs over the same mesh, model, batch and inner optimizer are compiled and then stepped in
turn, so that a machine whose speed drifts slows all of them: `plain` (the inner optimizer on each
worker, nothing else), `desloc` and `ddp`. Steps of desloc that sync are timed by themselves. Ratios
are medians over rounds of the ratio within a round.

--replicas=1,8,16 compares numbers of workers instead: what a step takes for each of them, where
they share the devices, against one worker alone. --guard compares steps that average the first moment
alone, with `moment_guard` and without.
"""

import copy
import dataclasses
import functools
import statistics
import time

from absl import app, flags
import jax
from ml_collections import config_dict, config_flags
import optax

from desloc_jax import model as model_lib
from desloc_jax.errors import UserError
from desloc_jax.hosts.platforms import prepare_cpus
from desloc_jax.logs.metrics import format_bytes
from desloc_jax.optimizer.over_workers import over_workers
from desloc_jax.tables import align
from desloc_jax.train import cli
from desloc_jax.train.job import Job, make_job
from desloc_jax.train.setup import mesh as mesh_lib
from desloc_jax.train.setup.build_optimizer import schedule_and_inner

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A file of configs/.')
_REPLICAS = flags.DEFINE_list('replicas', [], 'Numbers of workers to compare, the first with all.')
_GUARD = flags.DEFINE_bool('guard', False, 'Compare steps with the guard of moments and without.')
_ROUNDS = flags.DEFINE_integer('rounds', 15, 'Rounds of one step of each program.', lower_bound=3)


@dataclasses.dataclass
class Program:
  """A compiled step and its state, which each call replaces."""

  compiled: jax.stages.Compiled
  state: object
  tokens: jax.Array
  others: tuple = ()  # Arguments after the tokens.

  def seconds(self) -> float:
    """Steps once and returns the seconds until the new state is there."""
    start = time.perf_counter()
    self.state, _ = self.compiled(self.state, self.tokens, *self.others)
    jax.block_until_ready(self.state)
    return time.perf_counter() - start

  def memory_bytes(self) -> int:
    """Returns what XLA plans to hold on a device at once: arguments, results and temporaries."""
    plan = self.compiled.memory_analysis()
    results = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + results + plan.temp_size_in_bytes


def plain_program(job: Job) -> Program:
  """Returns the inner optimizer alone on each worker, inside the same shard_map."""
  config = job.config
  _, inner = schedule_and_inner(config, job.clock)
  loss = functools.partial(model_lib.next_token_loss_and_metrics, config=job.program.model)

  def of_worker(state, tokens):
    params, inner_state = state
    (value, about_model), grads = jax.value_and_grad(loss, has_aux=True)(params, tokens[0])
    updates, inner_state = inner.update(grads, inner_state, params)
    metrics = {'loss': value, 'model': about_model, 'grad_norm': optax.tree.norm(grads)}
    return (optax.apply_updates(params, updates), inner_state), metrics

  def new_state():
    params = model_lib.init_params(job.program.model, jax.random.key(config.seed))
    return jax.vmap(lambda: (params, inner.init(params)), axis_size=config.workers)()

  shardings = mesh_lib.shardings(job.program.mesh, jax.eval_shape(new_state), 0)
  state = jax.jit(new_state, out_shardings=shardings)()
  step = jax.jit(
    over_workers(of_worker, job.program.mesh, (0, 0), (0, 0)),
    donate_argnums=0,
    out_shardings=(shardings, None),
  )
  return Program(step.lower(state, job.program.tokens_like).compile(), state, first_batch(job))


def method_program(config: config_dict.ConfigDict, **options) -> tuple[Job, Program]:
  """Returns the trainer's own step for `config` with `options` changed."""
  config = copy.deepcopy(config)  # ConfigDict(config) would share the groups of options.
  config.update_from_flattened_dict({'accumulation': 1, **options})
  job = make_job(config)
  # All workers are there.
  return job, Program(job.train_step, job.program.make_state(), first_batch(job), others=(None,))


def first_batch(job: Job) -> jax.Array:
  """Returns the tokens of a step."""
  tokens = job.data.stream.batch(0).reshape(job.program.tokens_like.shape)
  return jax.device_put(tokens, job.program.tokens_like.sharding)


def measure(programs: dict[str, Program], rounds: int) -> dict[str, list[float]]:
  """Returns the seconds of each round, by program; the first round is not counted."""
  seconds = {name: [] for name in programs}
  for turn in range(rounds + 1):
    for name, program in programs.items():
      elapsed = program.seconds()
      if turn:
        seconds[name].append(elapsed)
  return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
  """Returns the median over rounds of name's seconds over base's."""
  pairs = zip(seconds[name], seconds[base], strict=True)
  return statistics.median(a / b for a, b in pairs)


def main(argv):
  del argv
  prepare_cpus()
  config = _CONFIG.value
  if _REPLICAS.value:
    print(compare_replicas(config, parse_replicas(_REPLICAS.value), _ROUNDS.value))
    return
  if _GUARD.value:
    print(compare_guard(config, _ROUNDS.value))
    return
  # A period beyond the rounds makes every step a local one; a period of 1 every step a sync.
  job, local = method_program(config, method='desloc', **{'periods.params': 10**6})
  _, every = method_program(config, method='local_adam', **{'periods.params': 1})
  _, ddp = method_program(config, method='ddp')
  programs = {
    'plain': plain_program(job),
    'desloc, local step': local,
    'desloc, all three sync': every,
    'ddp': ddp,
  }
  print(table(job, programs, measure(programs, _ROUNDS.value)))


def parse_replicas(values: list[str]) -> list[int]:
  """Returns numbers of workers.

  Raises:
    UserError: one is not a number from 1 on.
  """
  for value in values:
    if not value.isdecimal() or int(value) < 1:
      raise UserError(
        f"--replicas has '{value}'; expected numbers of workers, e.g. --replicas=1,8."
      )
  return list(dict.fromkeys(map(int, values)))


def compare_replicas(config: config_dict.ConfigDict, counts: list[int], rounds: int) -> str:
  """Returns the time of a local step by number of workers, as a table."""
  options = {'method': 'desloc', 'periods.params': 10**6}
  jobs = {str(count): method_program(config, workers=count, **options) for count in counts}
  seconds = measure({name: program for name, (_, program) in jobs.items()}, rounds)
  first = str(counts[0])
  rows = [('workers', 'step', 'tokens/s', f'time of each / of {first}')]
  for name, (job, _) in jobs.items():
    step_s = statistics.median(seconds[name])
    each = ratio(seconds, name, first) * counts[0] / int(name)
    rate = job.clock.batch.tokens / step_s
    rows.append((name, f'{1e3 * step_s:.1f} ms', f'{rate:,.0f}', f'{each:.3f}'))
  job = jobs[first][0]
  device = jax.devices()[0].device_kind
  return f'{align(rows)}\n{len(jax.devices())} x {device}, {job.program.parameters:,} parameters, jax {jax.__version__}.'


def compare_guard(config: config_dict.ConfigDict, rounds: int) -> str:
  """Returns the time of a step that averages the first moment alone, with the guard and without."""
  options = {'method': 'desloc', 'periods.params': 10**6, 'periods.mu': 1, 'periods.nu': 10**6}
  named = {'without the guard': False, 'with it': True}
  programs = {
    name: method_program(config, **options, moment_guard=guard)[1] for name, guard in named.items()
  }
  seconds = measure(programs, rounds)
  rows = [('average of the first moment', 'step', 'time / without')]
  for name in programs:
    step_ms = 1e3 * statistics.median(seconds[name])
    rows.append((name, f'{step_ms:.1f} ms', f'{ratio(seconds, name, "without the guard"):.3f}'))
  return align(rows)


def table(job: Job, programs: dict[str, Program], seconds: dict[str, list[float]]) -> str:
  """Returns time and memory of each program beside `plain`."""
  copy = 4 * job.program.parameters * job.config.workers / job.program.mesh.size
  consensus = 4 * job.program.parameters / job.program.mesh.shape[mesh_lib.FSDP]
  base = programs['plain'].memory_bytes()
  rows = [('program', 'tokens/s', 'time / plain', 'memory', 'over plain, in consensus copies')]
  for name, program in programs.items():
    memory = program.memory_bytes()
    rows.append(
      (
        name,
        f'{job.clock.batch.tokens / statistics.median(seconds[name]):,.0f}',
        f'{ratio(seconds, name, "plain"):.3f}',
        format_bytes(memory),
        f'{(memory - base) / consensus:+.2f}',
      )
    )
  device = jax.devices()[0].device_kind
  return (
    f'{align(rows)}\n{job.config.workers} workers on {job.program.mesh.size} x {device}, '
    f'{job.program.parameters:,} parameters, jax {jax.__version__}; local copies take '
    f'{format_bytes(copy)} a device, the consensus {format_bytes(consensus)}.'
  )


if __name__ == '__main__':
  app.run(cli.exit_with_one_line(main), flags_parser=cli.parse_flags)
