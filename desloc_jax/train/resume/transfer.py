"""Makes the state of a new segment from the arrays of a checkpoint of another number of workers,
or of another method or inner optimizer.

The consensus, the outer optimizer and the counters carry over as they are. Each worker's parameters
and moments become the mean over the old workers, as new workers begin in the paper, unless the
number of workers is the same. What has no mean, or was not there, begins anew.
"""

from collections.abc import Mapping, Sequence
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

from desloc_jax.checkpoints.leaves import LeafReader, named_leaves, Pending, PER_WORKER
from desloc_jax.checkpoints.train_state import TrainState
from desloc_jax.optimizer.over_workers import WORKERS
from desloc_jax.train.job import Job

FLIGHT = 'optimizer.flight.'
# Measurements of single workers: they have no meaning for others.
MEASUREMENTS = ('optimizer.drift.', 'optimizer.health.')


class Before(NamedTuple):
  """What a checkpoint holds."""

  leaves: Mapping[str, jax.ShapeDtypeStruct]  # By name.
  workers: int
  shared_moments: bool  # Of a method whose moments have no axis of workers.
  finite: Sequence[bool]  # [workers]: those that are not are left out of means.
  step: int


class Leaf(NamedTuple):
  """One array of the new state."""

  name: str
  like: jax.ShapeDtypeStruct
  per_worker: bool  # [workers, ...].


class Transfer:
  """Makes the state of a job from what a checkpoint holds: first all is read, then spread.

  Only the parts that a device needs are read for it: neither a host nor a device ever holds an
  array of all old workers. Processes may fail to read, each by itself; to spread is for all of
  them together.
  """

  def __init__(self, job: Job, before: Before):
    """Takes the job to go on with."""
    self._job, self._before = job, before
    shared_moments = not jax.tree.leaves(job.program.state_like.optimizer.params)
    self._leaves = [
      Leaf(name, like, _is_per_worker(name, shared_moments))
      for name, like in named_leaves(job.program.state_like).items()
    ]

  def read(self, reader: LeafReader) -> dict[str, jax.Array | None]:
    """Returns the array of each leaf, of one worker if all are to be alike; None: begins anew."""
    pending = {
      leaf.name: _carry_over(leaf, self._leaves, self._before, reader) for leaf in self._leaves
    }
    # What is in flight lands whole or not at all: by another rule or in other places it lacks a part.
    flight = [name for name in pending if name.startswith(FLIGHT)]
    if any(pending[name] is None for name in flight):
      pending |= dict.fromkeys(flight)
    return {name: wait and wait() for name, wait in pending.items()}

  def state(self, arrays: Mapping[str, jax.Array | None]) -> tuple[TrainState, str]:
    """Returns the state, and in a few words what was made from what."""
    names = [leaf.name for leaf in self._leaves]
    fresh = [name for name in names if arrays[name] is None]
    begun = _begin_anew(self._job, fresh)
    leaves = [
      begun[leaf.name] if leaf.name in begun else _spread(arrays[leaf.name], leaf)
      for leaf in self._leaves
    ]
    state = jax.tree.unflatten(jax.tree.structure(self._job.program.state_like), leaves)
    return state, _summary(self._before, self._job.config.workers, fresh, names)


def _is_per_worker(name: str, shared_moments: bool) -> bool:
  return name.startswith(PER_WORKER) and not (
    shared_moments and name.startswith('optimizer.inner.')
  )


def _carry_over(
  leaf: Leaf, leaves: Sequence[Leaf], before: Before, reader: LeafReader
) -> Pending | None:
  """Starts to read the array of a leaf, or that of one worker; None if it is to begin anew."""
  source = _source(leaf.name, leaves, before)
  if source is None:
    count = _step_count(leaf, leaves, before)
    return None if count is None else lambda: count
  old_workers = before.workers if _is_per_worker(source, before.shared_moments) else None
  new_workers = leaf.like.shape[0] if leaf.per_worker else None
  old_shape = before.leaves[source].shape[old_workers is not None :]
  if old_shape != leaf.like.shape[leaf.per_worker :]:
    return None
  if old_workers == new_workers:
    return reader.start(source, leaf.like)
  if leaf.name.startswith(MEASUREMENTS):
    return None
  one = _one_worker(leaf)
  if old_workers is None:
    return reader.start(source, one)
  rows = [row for row, finite in enumerate(before.finite) if finite]
  if jnp.issubdtype(leaf.like.dtype, jnp.inexact):
    return reader.start_mean(source, rows, one)
  value = reader.read_if_same(source, rows, one)
  return None if value is None else lambda: value


def _source(name: str, leaves: Sequence[Leaf], before: Before) -> str | None:
  """Returns the checkpoint's name of a leaf: the same, or the same but for places in a chain."""
  if name in before.leaves:
    return name
  if name.startswith('optimizer.params.'):  # After a method without local parameters.
    return name.removeprefix('optimizer.')
  if name.startswith('optimizer.inner.'):
    matches = [other for other in before.leaves if _plain(other) == _plain(name)]
    rivals = [leaf for leaf in leaves if _plain(leaf.name) == _plain(name)]
    if len(matches) == len(rivals) == 1:
      return matches[0]
  return None


def _plain(name: str) -> str:
  return re.sub(r'\.\d+(?=\.|$)', '', name)


def _step_count(leaf: Leaf, leaves: Sequence[Leaf], before: Before) -> jax.Array | None:
  """Returns the steps done, for a step count that does not belong to moments that begin anew."""
  group, _, field = leaf.name.rpartition('.')
  beside = [n for n, *_ in leaves if n.startswith(f'{group}.') and n != leaf.name]
  if field != 'count' or any(_source(name, leaves, before) is None for name in beside):
    return None
  return jax.device_put(jnp.full(leaf.like.shape, before.step, leaf.like.dtype), leaf.like.sharding)


def _one_worker(leaf: Leaf) -> jax.ShapeDtypeStruct:
  """Returns the shape and sharding of a leaf without the axis of workers."""
  if not leaf.per_worker:
    return leaf.like
  sharding = leaf.like.sharding
  spec = P(*(axis for axis in sharding.spec if axis != WORKERS))
  return jax.ShapeDtypeStruct(
    leaf.like.shape[1:], leaf.like.dtype, sharding=NamedSharding(sharding.mesh, spec)
  )


def _spread(value: jax.Array, leaf: Leaf) -> jax.Array:
  if value.shape == leaf.like.shape:
    return value
  return _spread_to(leaf.like.shape, leaf.like.sharding)(value)


@functools.cache  # Leaves of the same shape and sharding share what is compiled.
def _spread_to(shape: tuple[int, ...], sharding: NamedSharding):
  return jax.jit(lambda x: jnp.broadcast_to(x, shape), out_shardings=sharding)


def _begin_anew(job: Job, names: Sequence[str]) -> dict[str, jax.Array]:
  """Returns these leaves of the state before the first step."""
  shardings = {name: like.sharding for name, like in named_leaves(job.program.state_like).items()}

  def chosen():
    leaves = named_leaves(job.program.new_state())
    return {name: leaves[name] for name in names}

  return jax.jit(chosen, out_shardings={name: shardings[name] for name in names})()


def _summary(before: Before, workers: int, fresh: Sequence[str], names: Sequence[str]) -> str:
  parts = []
  if before.workers != workers:
    well = sum(before.finite)
    parts.append(f"each worker's parameters and moments are the mean of {well} old workers'")
  if fresh:
    parts.append(f'reset: {", ".join(sorted({_group(name) for name in fresh}))}')
  if gone := sorted({_group(name) for name in before.leaves} - {_group(name) for name in names}):
    parts.append(f'left out: {", ".join(gone)}')
  return '; '.join(parts) or 'everything else is as it was'


def _group(name: str) -> str:
  """Returns what a leaf is part of, without its place in the model: 'inner.nu', 'drift'."""
  parts = _plain(name).removeprefix('optimizer.').split('.')
  return parts[0] if parts[0] in ('params', 'drift', 'health') else '.'.join(parts[:2])
