"""Who was away counts more when it is back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.averaging import Share
from desloc_jax.optimizer.syncs.sync import Memory, Sync


class Presence(NamedTuple):
  """At which syncs a worker counted."""

  since: jax.Array  # int32 scalar: syncs since it last did.
  mean: jax.Array  # float32 scalar, of the lengths of the intervals between those at which it did.
  intervals: jax.Array  # int32 scalar: how many are in the mean.


def fedau(sync: Sync, cutoff: int = 50) -> Sync:
  r"""Weighs each worker by the mean number of syncs from one at which it counts to the next.

  .. math::
    w_m \leftarrow w_m \frac1{|S_m|} \sum_{s \in S_m} s

  with S the intervals before this sync; 1 before the first. So a worker that is there half of the
  time counts twice when it is. An interval that reaches `cutoff` ends there. The paper divides the
  sum by the number of all workers; here, as weights do everywhere, by the sum of the weights of
  those who are there, so that what has no reference keeps its size.

  Args:
    sync: how who counts is averaged.
    cutoff: longest interval, at least 1.

  Returns:
    A `Sync` that remembers three numbers a worker beside what `sync` does, and sends one more. With
    all workers always there it is `sync`.

  Raises:
    ValueError: `cutoff` is out of range.

  References:
    Wang and Ji, `A Lightweight Method for Tackling Unknown Participation Statistics in Federated
    Averaging <https://arxiv.org/abs/2306.03401>`_, 2023
  """
  if cutoff < 1:
    raise ValueError(f'cutoff is {cutoff}; expected at least 1.')

  def init(tree):
    none = jnp.zeros([], jnp.int32)
    own, shared = sync.init(tree)
    return Memory({'presence': Presence(none, jnp.ones([]), none), 'sync': own}, shared)

  def reduce(local, reference, memory, context):
    presence = memory.own['presence']
    weight = jnp.ones([]) if context.share is None else context.share.weight
    after = _count(presence, weight > 0, cutoff)
    if context.share is not None:
      weight *= presence.mean
      context = context._replace(share=Share(weight, jax.lax.psum(weight, context.axis_name)))
    inner = Memory(memory.own['sync'], memory.shared)
    agreed, inner = sync.reduce(local, reference, inner, context)
    return agreed, Memory({'presence': after, 'sync': inner.own}, inner.shared)

  return sync._replace(init=init, reduce=reduce)


def _count(presence: Presence, counts: jax.Array, cutoff: int) -> Presence:
  since = presence.since + 1
  ends = counts | (since >= cutoff)
  intervals = presence.intervals + 1
  mean = (presence.mean * presence.intervals + since) / intervals
  return Presence(
    since=jnp.where(ends, 0, since),
    mean=jnp.where(ends, mean, presence.mean).astype(jnp.float32),
    intervals=jnp.where(ends, intervals, presence.intervals),
  )
