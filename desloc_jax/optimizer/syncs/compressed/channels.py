"""Channels: ways through which every worker gets the same mean of what each worker sent.

A channel works on vectors cut into rows, [rows, block], and knows nothing of trees, references and
memories. Collectives go over one axis at a time, since workers may be spread over devices and, on
each, over a vmapped axis.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.averaging import AxisName, Share, worker_count
from desloc_jax.optimizer.syncs.compressed.encodings import Encoding


class Channel(NamedTuple):
  """What goes in is finite, [rows, block]; what comes out:

  `sent`, what this worker's message came to, so that the mean of `sent` over workers is `agreed`
  (where all workers count for every coordinate); and `agreed`, the same bits on all workers.
  """

  block: int
  send: Callable[[jax.Array, 'Counts', AxisName], tuple[jax.Array, jax.Array]]
  positive: bool = False  # Whether it takes numbers >= 0 only.


class Counts(NamedTuple):
  """How much each worker counts."""

  own: jax.Array  # float32 scalar, of this worker.
  all: jax.Array | None  # float32 [workers]; None: all the same.


def worker_counts(axis_name: AxisName, share: Share | None) -> Counts:
  """Returns how much each worker counts; sends four bytes a worker if they may differ."""
  if share is None:
    return Counts(jnp.ones([]), None)
  return Counts(share.weight, gathered(share.weight, axis_name))


def in_slices(encoding: Encoding) -> Channel:
  r"""Each worker averages one slice of the coordinates for all, and hands the result round.

  .. math::
    s_m = C(z_m), \quad \bar z = C\Big(\frac1W \sum_m s_m\Big)

  An all-to-all and an all-gather of encoded slices: the bytes of a ring all-reduce, and one float
  copy of the vector. The worker that averages a slice encodes it again; the error of that is put on
  its own account, as if it had sent W times as much of it: nothing is lost to a memory.
  """

  def send(z, counts, axis_name):
    workers = worker_count(axis_name)
    rows, dtype = len(z), z.dtype
    message = encoding.encode(_pad_rows(z, workers))
    message = message.reshape(workers, -1, message.shape[-1])
    slices = encoding.decode(exchanged(message, axis_name), dtype)
    mean = weighted_mean(slices, counts)
    published = encoding.encode(mean)
    everything = gathered(published, axis_name)
    error = encoding.decode(published, dtype) - mean
    sent = encoding.decode(message, dtype)
    sent = sent.at[jax.lax.axis_index(axis_name)].add(error / _fraction(counts, workers, dtype))
    agreed = encoding.decode(everything, dtype)
    return tuple(x.reshape(-1, encoding.block)[:rows] for x in (sent, agreed))

  return Channel(encoding.block, send, encoding.positive)


def to_everybody(encoding: Encoding, senders_only: bool = False) -> Channel:
  """Each worker sends its message to every other one, and each of them averages all.

  For messages so short that W of them are less than a vector. They are decoded one after another.

  Args:
    encoding: in which most numbers become zero.
    senders_only: whether a coordinate's mean is over the workers that sent it (to whom it is not
      zero), not over all.
  """

  def send(z, counts, axis_name):
    message = encoding.encode(z)
    messages = gathered(message, axis_name)
    weights = jnp.ones(len(messages)) if counts.all is None else counts.all
    weights = weights.astype(z.dtype)

    def add(total, of_worker):
      message, weight = of_worker
      values = encoding.decode(message, z.dtype)
      counted = weight * (values != 0) if senders_only else weight
      return (total[0] + weight * values, total[1] + counted), None

    zeros = jnp.zeros(z.shape, z.dtype)
    nobody = zeros if senders_only else jnp.zeros([], z.dtype)
    (total, count), _ = jax.lax.scan(add, (zeros, nobody), (messages, weights))
    return encoding.decode(message, z.dtype), total / jnp.where(count > 0, count, 1)

  return Channel(encoding.block, send, encoding.positive)


def weighted_mean(rows: jax.Array, counts: Counts) -> jax.Array:
  """Returns the mean over the first axis, of workers; with the bits of `worker_mean` in a vmap."""
  if counts.all is None:
    return rows.sum(axis=0) / len(rows)
  weights = counts.all.astype(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1))
  total = weights.sum()
  parts = jnp.where(weights > 0, rows * weights, 0)
  return parts.sum(axis=0) / jnp.where(total > 0, total, 1)


def exchanged(slices: jax.Array, axis_name: AxisName) -> jax.Array:
  """Sends the w-th slice of each worker to worker w: [workers, ...], by receiver, then by sender."""
  names, sizes = axis_sizes(axis_name)
  slices_by_axis = slices.reshape(*sizes, *slices.shape[1:])
  for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
    if size > 1:
      slices_by_axis = jax.lax.all_to_all(slices_by_axis, name, i, i, tiled=True)
  return slices_by_axis.reshape(slices.shape)


def gathered(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """Returns [workers, ...], the same on all workers."""
  names, sizes = axis_sizes(axis_name)
  rows = x
  for name in reversed(names):
    # Under shard_map(check_vma=True) the type says that all have the same; elsewhere there is none.
    typed = name in jax.typeof(rows).mat.varying
    rows = jax.lax.all_gather(rows, name, to='invarying' if typed else 'varying')
  return rows.reshape(math.prod(sizes), *x.shape)


def axis_sizes(axis_name: AxisName) -> tuple[tuple[str, ...], list[int]]:
  """Returns the axes of the workers, and how many places each has: the last counts fastest."""
  names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
  return names, [jax.lax.axis_size(name) for name in names]


def _fraction(counts: Counts, workers: int, dtype) -> jax.Array:
  """Returns the part of the mean that is this worker's; infinite if it is none."""
  if counts.all is None:
    return jnp.asarray(1 / workers, dtype)
  own, total = counts.own.astype(dtype), counts.all.astype(dtype).sum()
  return jnp.where(own > 0, own / total, jnp.inf)


def _pad_rows(z: jax.Array, multiple: int) -> jax.Array:
  return jnp.pad(z, [(0, -len(z) % multiple), (0, 0)])
