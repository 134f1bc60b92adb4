"""Training that diverged: what is no longer finite, and cannot be left out, ends a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ADVICE = (
  'Checkpoints stay as they are; a lower inner.learning_rate or inner.clip_norm, in another '
  '--workdir, may help.'
)


class TrainingDiverged(RuntimeError):
  """What is not finite any more cannot be left out: the only worker, a shared model, or all."""


def check_finite(step: int, metrics: Mapping[str, Any], active: np.ndarray) -> None:
  """Checks the losses and gradient norms, float32 [workers], of a step.

  With a health check in the optimizer it is enough that one worker is well.

  Raises:
    TrainingDiverged: names the metric, the worker and the step.
  """
  healthy = metrics['health'].get('healthy', active)
  problems = []
  for name in ('loss', 'grad_norm'):
    finite = np.isfinite(metrics[name])
    if not finite.all():
      bad = np.flatnonzero(~finite)
      problems.append(f'{name} of worker {_listing(bad)} is {metrics[name][bad[0]]} at step {step}')
    healthy = healthy & finite
  if problems and not metrics['health']:
    raise TrainingDiverged(f'{problems[0]}. {_ADVICE}')
  if active.any() and not (healthy & active).any():
    problem = [*problems, f'parameters or moments of all are not finite at step {step}'][0]
    raise TrainingDiverged(f'no healthy worker is left: {problem}. {_ADVICE}')


def check_finite_state(step: int, finite: np.ndarray, can_be_left_out: bool) -> None:
  """Checks a state before it is saved.

  Args:
    step: after which it is.
    finite: boolean [workers], from `step.finite_workers`.
    can_be_left_out: whether it is enough that one worker is well.

  Raises:
    TrainingDiverged: names the worker and the step.
  """
  bad = np.flatnonzero(~finite)
  if bad.size and not (can_be_left_out and finite.any()):
    raise TrainingDiverged(
      f'parameters or moments of worker {_listing(bad)} are not finite after step {step}. {_ADVICE}'
    )


def _listing(workers: Sequence[int]) -> str:
  return ', '.join(map(str, workers))
