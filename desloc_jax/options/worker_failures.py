"""Workers that leave and return within one run, by a plan or at random at a rate; and that lie.

A worker that is away counts in no average. When it is there again it takes over the consensus and
the averaged moments at the next parameter sync, and counts from then on, with the health check or
without. With `sync.behind` or `sync.who=tokens` it counts at once, with the moments that it has. The
sequences dealt to it
meanwhile are lost to the run, as those in the memory of a machine that fails are.
"""

from collections.abc import Callable
import re

from ml_collections import config_dict
import numpy as np

from desloc_jax.errors import unknown_choice, UserError
from desloc_jax.optimizer.syncs import ATTACKS

_FORM = "expected WORKER:FIRST-LAST steps, as in '3:100-199, 0-1:500-'"
_RANGE = re.compile(r'(\d{1,9})(?:-(\d{1,9}))?:(\d{1,9})-(\d{0,9})')
_ATTACK = re.compile(r'(\d{1,9})(?:-(\d{1,9}))?:([a-z]+)(?:=(\d+(?:\.\d+)?))?')
_RANDOM_STREAM = 1  # Apart from the seeds of parameters, data and coins.


def parse_away(text: str, workers: int) -> list[tuple[int, int, int, float]]:
  """Returns (first worker, last worker, first step, last step) for each part of the text.

  Raises:
    UserError: a part has another form, names a worker that there is not, or ends before it begins.
  """
  plan = []
  for part in filter(None, map(str.strip, text.split(','))):
    match = _RANGE.fullmatch(part)
    if match is None:
      raise UserError(f'failures.away has {part!r:.60}; {_FORM}.')
    first, last = int(match[1]), int(match[2] or match[1])
    start, stop = int(match[3]), float(match[4] or 'inf')
    if not first <= last < workers:
      raise UserError(f'failures.away has {part!r:.60}; expected workers from 0 to {workers - 1}.')
    if not 1 <= start <= stop:
      raise UserError(
        f'failures.away has {part!r:.60}; expected steps from 1 on, the last not before the first.'
      )
    plan.append((first, last, start, stop))
  return plan


def parse_attacks(text: str, workers: int) -> dict[int, tuple[str, float | None]]:
  """Returns for each worker that lies how, and how strongly; None: as usual.

  Raises:
    UserError: a part has another form, names an attack or a worker that there is not, or one twice;
      or half of the workers lie.
  """
  plan = {}
  for part in filter(None, map(str.strip, text.split(','))):
    match = _ATTACK.fullmatch(part)
    if match is None:
      raise UserError(
        f"failures.attack has {part!r:.60}; expected WORKER:ATTACK, as in '5:flip, 6-7:scale=100', "
        f'with an attack of {", ".join(ATTACKS)}.'
      )
    first, last, name = int(match[1]), int(match[2] or match[1]), match[3]
    if name not in ATTACKS:
      raise unknown_choice('failures.attack', name, ATTACKS)
    if match[4] and ATTACKS[name].strength is None:
      raise UserError(f'failures.attack has {part!r:.60}, but {name} has no strength.')
    if not first <= last < workers:
      raise UserError(
        f'failures.attack has {part!r:.60}; expected workers from 0 to {workers - 1}.'
      )
    for worker in range(first, last + 1):
      if worker in plan:
        raise UserError(f'failures.attack has worker {worker} twice; each can lie in one way.')
      plan[worker] = (name, float(match[4]) if match[4] else None)
  if 2 * len(plan) >= workers and plan:
    raise UserError(
      f'failures.attack lets {len(plan)} of {workers} workers lie; expected fewer than half, '
      f'{(workers - 1) // 2} at most.'
    )
  return plan


def active_workers(config: config_dict.ConfigDict) -> Callable[[int], np.ndarray] | None:
  """Returns a function from a step, counted from 1, to boolean [workers]: who is there?

  None if nobody is ever away. It depends on the configuration only, so that a run that resumes
  sees the same failures.

  Raises:
    UserError: see `parse_away`, or the plan leaves no worker in some step.
  """
  plan = parse_away(config.failures.away, config.workers)
  if not plan and not config.failures.rate:
    return None
  planned = lambda step: _planned(plan, config.workers, step)
  for step in (start for _, _, start, _ in plan):
    if not planned(step).any():
      raise UserError(
        f'failures.away is {config.failures.away!r}: no worker is left in step {step}.'
      )
  if not config.failures.rate:
    return planned
  random = _RandomFailures(config.workers, config.failures.rate, config.failures.steps, config.seed)
  return lambda step: planned(step) & random(step)


def _planned(plan, workers: int, step: int) -> np.ndarray:
  active = np.ones(workers, bool)
  for first, last, start, stop in plan:
    if start <= step <= stop:
      active[first : last + 1] = False
  return active


class _RandomFailures:
  """Each worker by itself leaves with probability `rate` and returns with 1 / `away_steps` a step."""

  def __init__(self, workers: int, rate: float, away_steps: int, seed: int):
    self._chances = np.array([rate, 1 / away_steps])  # While there, while away.
    self._generators = [
      np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_RANDOM_STREAM, worker)))
      for worker in range(workers)
    ]
    self._away = [np.zeros(workers, int)]  # By step, as far as it was asked for.

  def __call__(self, step: int) -> np.ndarray:
    while len(self._away) <= step:
      drawn = np.array([generator.random() for generator in self._generators])
      changes = drawn < self._chances[self._away[-1]]
      self._away.append(self._away[-1] ^ changes)
    return self._away[step] == 0
