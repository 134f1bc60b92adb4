"""Robust averages: what a few workers send, whatever it is, moves the result only so far.

Each worker combines one slice of the coordinates of all for all, and hands the result round: an
all-to-all and an all-gather, the bytes of a ring all-reduce, and one float copy of the quantity.

Heads decide who is left out, weights (`Context.share`) how much those count who are left: a worker
with a large weight lies no better than another. Who does not count (away, or found unhealthy) is
no head. The promise is about what a worker says of itself, not about how it combines its slice.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.averaging import AxisName, worker_count, worker_mean
from desloc_jax.optimizer.syncs.compressed.channels import exchanged, gathered, worker_counts
from desloc_jax.optimizer.syncs.compressed.vectors import cut, inner_axes, over_devices
from desloc_jax.optimizer.syncs.mean import mean
from desloc_jax.optimizer.syncs.sync import Context, difference, moved, no_memory, Sync, Tree

_BLOCK = 128  # Numbers of a row: only how vectors are laid out.
_FAR = 1e30  # A squared length that float32 can hold many times.


class Senders(NamedTuple):
  """Who is combined; the same on all workers."""

  weights: jax.Array  # float32 [workers], 0 where one is not there or not finite.
  liars: jax.Array  # int32 scalar: how many of them may lie, less than half of them.

  @property
  def present(self) -> jax.Array:
    """Boolean [workers]."""
    return self.weights > 0

  @property
  def number(self) -> jax.Array:
    """int32 scalar, of those that are there."""
    return self.present.sum()


class Squares(NamedTuple):
  """Squared lengths; what has to do with a worker that is not there is infinite."""

  pairs: jax.Array  # float32 [workers, workers], of the differences of two workers' vectors.
  norms: jax.Array  # float32 [workers], of the vectors themselves.


class Rule(NamedTuple):
  """How vectors of several workers become one; one of the two."""

  # ([workers, ...], Senders) -> [...], each coordinate by itself.
  combine: Callable[[jax.Array, Senders], jax.Array] | None = None
  # (Squares, Senders) -> float32 [workers]: what the vectors are multiplied by and added up.
  weigh: Callable[[Squares, Senders], jax.Array] | None = None


def robust(
  rule: Rule,
  byzantine: int,
  neighbours: bool = False,
  differences: bool = False,
  positive: bool = False,
) -> Sync:
  """Combines the vectors of the workers by a rule.

  A worker of which a number is not finite is one of those that lie, and not used. Where so few are
  there that `byzantine` of them could be half, the rule assumes as many as it can bear: (n - 1) // 2
  of n.

  Args:
    rule: how they are combined.
    byzantine: how many workers may lie, f; less than half of them.
    neighbours: whether each vector is first replaced by the mean of its W - f nearest.
    differences: whether the rule is for differences from the reference, and not for values.
    positive: whether no worker has a negative number, as of second moments. Who sends one lies: it
      is not used. Else a lie could make the average negative, of which Adam takes the root.

  Returns:
    A `Sync` without memory. Under `neighbours` and with f = 0 it is the mean.

  Raises:
    ValueError: `byzantine` is negative; at a sync, if it is half of the workers or more.

  References:
    Allouah et al., `Fixing by Mixing <https://arxiv.org/abs/2302.01772>`_, 2023
  """
  if byzantine < 0:
    raise ValueError(f'byzantine is {byzantine}; expected a number of workers >= 0.')
  if neighbours and byzantine == 0:
    return mean()

  def reduce(local, reference, memory, context):
    workers = worker_count(context.axis_name)
    check_byzantine(byzantine, workers)
    if workers == 1:
      return worker_mean(local, context.axis_name, context.share), memory  # Of itself.
    if not differences:
      return moved(local, None, agree(local, context)), memory
    return moved(local, reference, agree(difference(local, reference), context)), memory

  def agree(tree: Tree, context: Context) -> Tree:
    axis_name, workers = context.axis_name, worker_count(context.axis_name)
    slices, join = spread(tree, axis_name)
    if positive:
      slices = [jnp.where(s < 0, jnp.nan, s) for s in slices]
    senders, mixing = find_senders(context, byzantine), None
    combine = rule.combine
    if slices and (rule.weigh or neighbours):
      senders, squares = compare(slices, senders, byzantine, axis_name)
      if neighbours:
        mixing = nearest(squares, senders)
        squares = squares_of_mixed(squares, mixing, senders)
      if rule.weigh:
        factors = rule.weigh(squares, senders)
        mixing = (factors if mixing is None else _times(factors, mixing))[None]
        combine = lambda rows, _: rows[0]

    def hand_round(known, vectors):
      senders, mixing = known
      rows = by_worker(vectors, workers)
      rows = rows if mixing is None else mixed(rows, mixing, senders)
      return flat(gathered(combine(rows, senders), axis_name))

    return join([over_devices(hand_round)((senders, mixing), s) for s in slices])

  return Sync(no_memory, reduce)


def spread(
  tree: Tree, axis_name: AxisName
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Tree]]:
  """Gives each worker its slice of all workers' vectors; returns them, and what makes trees of vectors.

  See `by_worker` for their form.
  """
  workers = worker_count(axis_name)

  def send_slices(_, rows):
    return flat(exchanged(by_worker(rows, workers), axis_name))

  vectors, join = cut(tree, _BLOCK, workers * inner_axes()[1])
  return [over_devices(send_slices)((), v) for v in vectors], join


def by_worker(rows: jax.Array, workers: int) -> jax.Array:
  """Returns [workers, ...] of the rows of a vector, or of one slice of each worker."""
  return rows.reshape(workers, -1, _BLOCK)


def flat(rows: jax.Array) -> jax.Array:
  """Returns what `by_worker` takes."""
  return rows.reshape(-1, _BLOCK)


def find_senders(context: Context, byzantine: int) -> Senders:
  """Returns who counts, and how many of them may lie."""
  weights = worker_counts(context.axis_name, context.share).all
  if weights is None:
    weights = jnp.ones(worker_count(context.axis_name), jnp.float32)
  return Senders(weights, _bearable(byzantine, weights > 0))


def compare(
  slices: list[jax.Array], senders: Senders, byzantine: int, axis_name: AxisName
) -> tuple[Senders, Squares]:
  """Returns the senders of whom all is finite, and lengths of what they sent."""
  squares = measure(slices, axis_name)
  senders = only_finite(senders, squares, byzantine)
  return senders, _without_absent(squares, senders)


def check_byzantine(byzantine: int, workers: int) -> None:
  """Raises ValueError if so many may lie that no rule helps."""
  if byzantine and 2 * byzantine >= workers:
    raise ValueError(
      f'{byzantine} of {workers} workers may lie, but no average can bear half of them; expected '
      f'byzantine from 0 to {(workers - 1) // 2}.'
    )


def measure(slices: list[jax.Array], axis_name: AxisName) -> Squares:
  """Returns the lengths over all slices: adds up W (W + 1) numbers over the workers."""
  workers = worker_count(axis_name)

  def of_device(_, vectors):
    rows = by_worker(vectors, workers)
    length = lambda x: (x * x).sum(axis=-1).sum(axis=-1)
    pairs = jax.lax.map(lambda row: length(rows - row), rows)
    return jnp.concatenate([pairs, length(rows)[:, None]], axis=1)[None]

  table = sum(over_devices(of_device)((), s).sum(axis=0) for s in slices)
  table = jax.lax.psum(table, axis_name)
  return Squares(table[:, :workers], table[:, workers])


def only_finite(senders: Senders, squares: Squares, byzantine: int) -> Senders:
  """Leaves out who sent something that is not finite, each of whom is one that lies."""
  finite = jnp.isfinite(jnp.diagonal(squares.pairs))  # x - x is 0, or not a number.
  broken = (senders.present & ~finite).sum()
  weights = jnp.where(finite, senders.weights, 0)
  return Senders(weights, _bearable(jnp.maximum(byzantine - broken, 0), weights > 0))


def nearest(squares: Squares, senders: Senders) -> jax.Array:
  """Returns [workers, workers]: weights of the mean of each one's n - f nearest, itself included."""
  order = jnp.argsort(squares.pairs, axis=1)
  ranks = jnp.argsort(order, axis=1)
  chosen = (ranks < senders.number - senders.liars) & senders.present
  weights = jnp.where(chosen & senders.present[:, None], senders.weights, 0)
  total = weights.sum(axis=1, keepdims=True)
  return weights / jnp.where(total > 0, total, 1)


def squares_of_mixed(squares: Squares, mixing: jax.Array, senders: Senders) -> Squares:
  """Returns the lengths of mixed vectors, whose weights add up to one, from those of the others."""
  between = mixing[:, None] - mixing[None]
  known = summable(squares, senders)
  product = lambda a, b: jnp.einsum('...i,ij,...j->...', a, known.pairs, b, precision='highest')
  pairs = jnp.maximum(-product(between, between) / 2, 0)
  norms = jnp.maximum(_times(mixing, known.norms) - product(mixing, mixing) / 2, 0)
  return _without_absent(Squares(pairs, norms), senders)


def summable(squares: Squares, senders: Senders) -> Squares:
  """Returns lengths that can be multiplied by zero: 0 of who is not there, and nothing infinite."""
  both = senders.present[:, None] & senders.present[None]
  known = lambda x, there: jnp.where(there, jnp.minimum(x, _FAR), 0)
  return Squares(known(squares.pairs, both), known(squares.norms, senders.present))


def mixed(rows: jax.Array, mixing: jax.Array, senders: Senders) -> jax.Array:
  """Returns `mixing` [any, workers] times the rows [workers, ...] of those that are there."""
  there = senders.present.reshape(-1, *[1] * (rows.ndim - 1))
  rows = jnp.where(there, rows, 0)
  return jnp.einsum('ij,j...->i...', mixing.astype(rows.dtype), rows, precision='highest')


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision='highest')


def _bearable(byzantine: int | jax.Array, present: jax.Array) -> jax.Array:
  return jnp.minimum(byzantine, jnp.maximum(present.sum() - 1, 0) // 2)


def _without_absent(squares: Squares, senders: Senders) -> Squares:
  both = senders.present[:, None] & senders.present[None]
  known = lambda x, there: jnp.where(there & ~jnp.isnan(x), x, jnp.inf)
  return Squares(known(squares.pairs, both), known(squares.norms, senders.present))
