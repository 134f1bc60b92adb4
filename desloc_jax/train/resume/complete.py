"""A run at its end whose log is gone, or cut short: what its checkpoint knows is written again."""

import json
import pathlib

from desloc_jax.checkpoints.train_state import TrainState
from desloc_jax.hosts.peers import peers
from desloc_jax.logs.metrics import lost_steps, read_metrics
from desloc_jax.logs.workdir import METRICS_FILE, write_text
from desloc_jax.train.evaluate import Evaluator
from desloc_jax.train.job import Job


def complete_metrics(job: Job, state: TrainState, step: int, workdir: pathlib.Path) -> None:
  """Adds a line of the last step where metrics.jsonl lacks it, and says which steps are lost.

  The validation loss is measured again, the training loss is lost.

  Raises:
    UserError: what there is of metrics.jsonl is not of a run.
  """

  def is_complete() -> bool:
    lines = read_metrics(workdir)
    return any(line['step'] == step and 'val_loss' in line for line in lines)

  if peers().from_first(is_complete):
    return
  evaluation = Evaluator(job)(state)
  syncs = {name: int(count) for name, count in peers().fetch(state.syncs).items()}
  if not peers().is_first:
    return
  lines = [line for line in read_metrics(workdir) if line['step'] <= step]
  lost = lost_steps(lines, step)
  print(f'{lost} Step {step} is evaluated again from its checkpoint.')
  lines.append(
    {
      'step': step,
      'tokens': job.clock.tokens(step),
      **evaluation,
      'bytes_per_worker': job.bytes_after(syncs),
      'restored': lost,
    }
  )
  write_text(workdir / METRICS_FILE, ''.join(json.dumps(line) + '\n' for line in lines))
