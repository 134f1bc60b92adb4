"""What a run ends with: the table of what crossed the network, and summary.json."""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
import statistics
from typing import Any

import flax
import jax
from ml_collections import config_dict
import optax

from desloc_jax.data import bits_per_byte
from desloc_jax.errors import UserError
from desloc_jax.hosts.devices import peak_memory_bytes
from desloc_jax.logs.metrics import format_bytes, read_metrics
from desloc_jax.logs.plot import plot_or_tell
from desloc_jax.logs.workdir import PLOT_FILE, SUMMARY_FILE, write_text
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.optimizer.worker_step.frame import HEALTH, RESTARTS
from desloc_jax.paths import shown
from desloc_jax.programs.ledger import Ledger
from desloc_jax.tables import align
from desloc_jax.train.job import Job
from desloc_jax.train.setup.build_periods import periods_change
from desloc_jax.version import __version__, commit


def conclude(job: Job, workdir: pathlib.Path, syncs: Mapping[str, int]) -> dict[str, Any]:
  """Writes summary and plot of a run at its end, prints its tables and returns the summary.

  A summary that is there and says the same of the run stays, as does its plot: time, memory and
  device are those that it was trained with.
  """
  summary = summarise(job, read_metrics(workdir), syncs)
  if is_new := not _is_of_same(before := _read_summary(workdir), summary):
    write_summary(summary, workdir)
  else:
    summary = before
  print(network_table(job, summary))
  print(result_line(summary, workdir), flush=True)
  if is_new or not (workdir / PLOT_FILE).exists():
    plot_or_tell(
      workdir, title=f'{job.config.method}, {job.config.workers} workers: {workdir.name}'
    )
  return summary


def _read_summary(workdir: pathlib.Path) -> Any:
  try:
    return json.loads((workdir / SUMMARY_FILE).read_bytes())
  except (OSError, ValueError, RecursionError):
    return None


def _is_of_same(before: Any, summary: Mapping[str, Any]) -> bool:
  """Returns whether a summary says what this one does, and at most what this one does not know."""
  circumstances = ('compile_s', 'peak_memory_bytes', 'versions', 'device', 'devices')
  if not isinstance(before, dict) or before.keys() != summary.keys():
    return False
  now = json.loads(json.dumps(summary))
  known = [name for name in now if name not in circumstances and now[name] is not None]
  return all(before[name] == now[name] for name in known)


def summarise(
  job: Job, lines: Sequence[Mapping[str, Any]], syncs: Mapping[str, int]
) -> dict[str, Any]:
  """Returns a run's summary from its metrics and its number of syncs, by quantity.

  Bytes are payload per worker over all steps so far; see `desloc_jax.programs.ledger`. The speed
  is the median over the lines of the metrics.

  Raises:
    UserError: the metrics do not end with the evaluation that a run ends with.

  The training loss and the speed are None where their lines are lost.
  """
  line = lines[-1] if lines else {}
  if 'val_loss' not in line:
    raise UserError('metrics.jsonl lacks the last step of the run: it has been changed.')
  speeds = [each['tokens_per_s'] for each in lines if 'loss' in each]
  steps = line['step']
  sent = job.bytes_after(syncs)
  ddp_bytes = job.program.ddp_ledger.bytes_after(job.program.ddp_ledger.syncs_in(steps))
  local_adam_bytes = job.program.local_adam_ledger.bytes_after(
    job.program.local_adam_ledger.syncs_in(steps)
  )
  return {
    'method': job.config.method,
    'train_loss': line.get('loss'),
    'val_loss': line['val_loss'],
    'perplexity': math.exp(min(line['val_loss'], 700.0)),
    'bits_per_byte': bits_per_byte(line['val_loss'], job.data.held_out.bytes_per_token),
    'sources': _of_sources(job, line),
    'steps': steps,
    'tokens': line['tokens'],
    'tokens_per_s': statistics.median(speeds) if speeds else None,
    'compile_s': job.compile_s,
    'parameters': job.program.parameters,
    'peak_memory_bytes': peak_memory_bytes(),
    'workers': job.config.workers,
    'periods': dict(job.program.optimizer.periods),
    'syncs': dict(syncs),
    'bytes_per_worker': sent,
    'ring_bytes_per_worker': job.ring_bytes_after(syncs),
    'ddp_bytes_per_worker': ddp_bytes,
    'local_adam_bytes_per_worker': local_adam_bytes,
    'ddp_ratio': ddp_bytes / sent if sent else None,
    'local_adam_ratio': local_adam_bytes / sent if sent else None,
    'versions': {
      'desloc_jax': __version__,
      'commit': commit(),
      'jax': jax.__version__,
      'optax': optax.__version__,
      'flax': flax.__version__,
    },
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
  }


def _of_sources(job: Job, line: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Returns source name -> what was read of it and what it was evaluated to; line is the last."""
  epochs = job.data.stream.epochs(line['step'])
  sources = {name: {'epochs': count} for name, count in epochs.items()}
  samples = job.data.held_out.samples
  for sample in samples:
    # With one source it is the loss itself.
    loss = line.get(f'val_loss/{sample.name}', line['val_loss'] if len(samples) == 1 else None)
    sources[sample.name] |= {
      'weight': sample.weight,
      'val_sequences': len(sample.indices),
      'val_sequences_held_out': len(sample.packed),
      'val_loss': loss,
      'bits_per_byte': loss and bits_per_byte(loss, sample.bytes_per_token),
    }
  return sources


def write_summary(summary: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Writes summary.json into `workdir`."""
  write_text(workdir / SUMMARY_FILE, json.dumps(summary, indent=2) + '\n')


def network_table(job: Job, summary: Mapping[str, Any]) -> str:
  """Returns the table of what crossed the network, beside DDP and Local Adam on the same model."""
  rows = [('quantity', 'period', 'syncs', 'bytes/sync', 'bytes')]
  for name, size in job.ledger.bytes_per_sync.items():
    count = summary['syncs'][name]
    rows.append(
      (
        name,
        period_text(job.ledger, job.config, name),
        str(count),
        format_bytes(size),
        format_bytes(size * count),
      )
    )
  rows += [
    (f'{name}: never', '-', '0', '-', format_bytes(0))
    for name, period in job.program.optimizer.periods.items()
    if period is None
    and name not in job.ledger.periods
    and not METHODS[job.config.method].gradients
  ]
  rows.append(('all', '', '', '', format_bytes(summary['bytes_per_worker'])))
  for label, key in (('DDP', 'ddp'), ('Local Adam', 'local_adam')):
    ratio = summary[f'{key}_ratio']
    rows.append(
      (
        f'{label} would send',
        '',
        '',
        f'{ratio:.2f}x' if ratio else '-',
        format_bytes(summary[f'{key}_bytes_per_worker']),
      )
    )
  notes = (
    f'Payload of each worker in {summary["steps"]} steps; a ring all-reduce over '
    f'{job.config.workers} workers sends {format_bytes(summary["ring_bytes_per_worker"])} for it'
  )
  # Else what the ledger has is not what each of the steps sends, and there is no long run.
  steady = job.ledger.bytes_per_step and not periods_change(job.config)
  if steady and not (job.config.stochastic or job.config.sync_warmup_steps):
    notes += f', {format_bytes(job.ledger.most_ring_bytes)} at most in a step'
  notes += '.'
  if steady:
    ratio = job.program.ddp_ledger.bytes_per_step / job.ledger.bytes_per_step
    notes += f' In the long run DDP sends {ratio:.2f}x as much.'
  return f'What crossed the network\n{align(rows)}\n{notes}'


def period_text(ledger: Ledger, config: config_dict.ConfigDict, name: str) -> str:
  """Returns how often a quantity of a ledger is sent, for a table."""
  period = ledger.periods[name]
  if name == RESTARTS:
    return 'if needed'
  if name == HEALTH:
    return 'any sync'
  if period == math.inf:
    return 'warm-up'
  text = f'{period}'
  if early := getattr(period, 'early', 0):
    text += f', from {period - early}'
  if config.period_growth != 1 and not config.stochastic:
    text += f'..{max(1, period * config.period_growth):g}'
  if config.sync_end_steps and name == 'params':
    text += ', then 1'
  return f'p = 1/{text}' if config.stochastic else text


def result_line(summary: Mapping[str, Any], workdir: pathlib.Path) -> str:
  """Returns the run's result in a few words, by source where there are several, and its files."""
  evaluated = {n: source for n, source in summary['sources'].items() if source.get('val_loss')}
  by_source = ''.join(
    f'  {name} ({source["weight"]:.3g}): validation loss {source["val_loss"]:.4f}, '
    f'{source["bits_per_byte"]:.3f} bits per byte, of {source["val_sequences"]} of '
    f'{source["val_sequences_held_out"]} sequences\n'
    for name, source in evaluated.items()
    if len(evaluated) > 1
  )
  speed = summary['tokens_per_s']
  return (
    f'\nstep {summary["steps"]}: validation loss {summary["val_loss"]:.4f} nats/token, '
    f'perplexity {summary["perplexity"]:.3f}, {summary["bits_per_byte"]:.3f} bits per byte, '
    f'{"unknown" if speed is None else f"{speed:,.0f}"} tokens/s\n{by_source}'
    f'{shown(workdir)}: training.png, summary.json, metrics.jsonl, tensorboard/, checkpoints/'
  )
