"""What each step takes, placed on the devices one step ahead of it."""

from collections.abc import Iterator

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from desloc_jax.train.job import Job
from desloc_jax.train.setup import mesh as mesh_lib


def step_inputs(job: Job, start: int) -> Iterator[tuple[jax.Array, jax.Array | None]]:
  """Yields tokens and active workers of each step after `start`, already on the devices."""
  everywhere = NamedSharding(job.program.mesh, P())
  on_device = (
    (
      _place_tokens(job, tokens),
      job.active and mesh_lib.place(job.active(step), everywhere),
    )
    for step, tokens in enumerate(job.data.stream.iterator(start), start + 1)
  )
  ahead = next(on_device)  # One step ahead of the loop, so that a copy overlaps with a step.
  for inputs in on_device:
    yield ahead
    ahead = inputs


def _place_tokens(job: Job, tokens: np.ndarray) -> jax.Array:
  """Returns the global array of a step, of the tokens [local workers, ...] of this process."""
  like, first = job.program.tokens_like, job.local_workers[0]
  tokens = tokens.reshape(len(tokens), *like.shape[1:])

  def part(index):
    start, stop, _ = index[0].indices(like.shape[0])
    return tokens[(slice(start - first, stop - first), *index[1:])]

  return jax.make_array_from_callback(like.shape, like.sharding, part)
