"""A plan as text."""

import dataclasses
import math

from desloc_jax.logs.metrics import format_bytes
from desloc_jax.plan.estimate import Plan
from desloc_jax.plan.timing import (
  all_reduce_seconds,
  least_delay,
  period_for_share,
  slowest_link,
)
from desloc_jax.programs.ledger import EVERY_STEP
from desloc_jax.tables import align
from desloc_jax.train.setup.build_periods import periods_change
from desloc_jax.train.summary import period_text


def plan_text(plan: Plan) -> str:
  """Returns all of a plan: sizes, memory, bytes, time."""
  return '\n\n'.join([_sizes(plan), _memory(plan), _network(plan), _time(plan)])


def _sizes(plan: Plan) -> str:
  config, clock = plan.config, plan.clock
  return (
    f'{plan.parameters:,} parameters; workers: {config.workers}, of {plan.devices} devices each; '
    f'{clock.last_step:,} steps of {clock.batch.tokens:,} tokens, '
    f'{clock.tokens(clock.last_step):,} in all.'
  )


def _memory(plan: Plan) -> str:
  options, total = plan.config.plan, sum(plan.memory.values())
  limit = options.memory_gb * 1e9 * options.memory_fraction
  rows = [('memory of a device', 'bytes')]
  rows += [(name, format_bytes(size)) for name, size in plan.memory.items()]
  rows.append(('all', format_bytes(total)))
  note = (
    f'{"Fits" if total <= limit else "Too much"}: {total / limit:.1%} of the {format_bytes(limit)} that '
    f'JAX takes of {format_bytes(options.memory_gb * 1e9)} (plan.memory_fraction; in a run the '
    f'variable XLA_PYTHON_CLIENT_MEM_FRACTION={options.memory_fraction:g}).'
  )
  if total > limit:
    note += ' Raise plan.devices_per_worker, accumulation or model.remat, or that share.'
  return (
    f'{align(rows)}\n{note} States are split over the devices of a worker; activations are '
    "estimated (desloc_jax/model/size.py), XLA's own buffers not counted."
  )


def _network(plan: Plan) -> str:
  config = plan.config
  ledger, time = plan.ledgers[config.method], plan.times[config.method]
  steps_a_day = 86_400 / time.total_s
  columns = ('payload/sync', 'ring/sync', 'seconds/sync', 'payload/day', 'ring/day')
  rows = [(f'{config.method} sends', 'period', *columns)]
  for name, size in ledger.bytes_per_sync.items():
    a_day = size * steps_a_day / ledger.periods[name]
    rows.append(
      (
        name,
        period_text(dataclasses.replace(ledger, periods=plan.periods), config, name),
        format_bytes(size),
        format_bytes(ledger.ring_bytes(size, name)),
        f'{all_reduce_seconds(ledger, size, plan.link, name):#.4g}',
        format_bytes(a_day),
        format_bytes(ledger.ring_bytes(a_day, name)),
      )
    )
  a_day = ledger.bytes_per_step * steps_a_day
  ring = ledger.ring_bytes_per_step * steps_a_day
  rows.append(('all', *[''] * 4, format_bytes(a_day), format_bytes(ring)))
  note = (
    f'Of each worker, {config.plan.bytes_per_value:g} bytes a value; a day has '
    f'{steps_a_day:,.0f} steps of this method.'
  )
  if periods_change(config) or config.sync_warmup_steps:
    note += ' Means over the run, with the warm-up of averages and what their periods become.'
  elif ledger.bytes_per_step and not config.stochastic:
    note += f' In a step it sends {format_bytes(ledger.most_ring_bytes)} at most around the ring.'
  return f'{align(rows)}\n{note}'


def _time(plan: Plan) -> str:
  options, config = plan.config.plan, plan.config
  rows = [
    (
      'method', 'compute s', 'network s', 'network', 'step s', 'tokens/s', 'days', 'over DDP',
      f'K_x at {100 * options.share:g}%',
    )
  ]  # fmt: skip
  for method, time in plan.times.items():
    rows.append(
      (
        method,
        f'{time.compute_s:#.4g}',
        f'{time.communication_s:#.4g}',
        f'{time.share:.2%}',
        f'{time.total_s:#.4g}',
        f'{plan.clock.batch.tokens / time.total_s:,.0f}',
        f'{plan.days(method):#.4g}',
        f'{plan.times["ddp"].total_s / time.total_s:.2f}x',
        _period_at_share(plan, method),
      )
    )
  return (
    f'{align(rows)}\n{_hidden(plan)}A mean step over {options.bandwidth_gbps:g} Gb/s and {options.latency_ms:g} ms '
    f'a worker, compute at {options.mfu:g} of {options.peak_tflops:g} TFLOP/s a device. K_x at '
    f'{100 * options.share:g}%: from which on the network takes no more of a step, the other periods '
    f'growing with K_x ({config.periods.params} here).'
  )


def _hidden(plan: Plan) -> str:
  """Returns what syncs behind the steps would take, or do; nothing where there is nothing to hide."""
  config, ledger = plan.config, plan.ledgers[plan.config.method]
  if EVERY_STEP in ledger.bytes_per_sync or not ledger.bytes_per_step or config.workers == 1:
    return ''
  compute_s, share = plan.times[config.method].compute_s, config.plan.share
  delay = 1 + least_delay(ledger, plan.link, compute_s)
  longest = min(ledger.periods.values()) - 1
  if delay > longest:
    return (
      f'Behind the steps (sync.behind) the syncs of a step need {delay:,} steps, more than the '
      f'{longest:,.0f} between two of them.\n'
    )
  link = slowest_link(ledger, plan.link.latency_s, compute_s, int(longest) - 1, share)
  return (
    f'Behind the steps (sync.behind) sync.delay={delay} hides all syncs; at {100 * share:g}% of a step '
    f'with the longest delay, {longest:,.0f}, the slowest link is {link.bytes_per_s * 8e-9:.3g} Gb/s. Bytes '
    'and arithmetic both grow with the model: that is so for any size.\n'
  )


def _period_at_share(plan: Plan, method: str) -> str:
  periods = plan.ledgers[method].periods
  of_params = [period for name, period in periods.items() if name.partition('-')[0] == 'params']
  if not of_params or not math.isfinite(of_params[-1]):  # Of gradients, or never averaged.
    return '-'
  return f'{period_for_share(of_params[-1], plan.times[method], plan.config.plan.share):,}'
