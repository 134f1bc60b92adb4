"""Gossip: workers average in pairs, another pair each time, and nobody waits for all."""

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.averaging import at_least_float32, AxisName, worker_count
from desloc_jax.optimizer.syncs.compressed.channels import axis_sizes
from desloc_jax.optimizer.syncs.sync import Memory, Sync, Tree


def gossip() -> Sync:
  r"""The mean over a worker and its neighbour on one edge of a hypercube, edge by edge.

  In round r, counted from 0, worker m meets the one whose number differs in bit
  :math:`r \bmod \log_2 W`:

  .. math::
    x_m, x_j \leftarrow \frac{w_m x_m + w_j x_j}{w_m + w_j}, \quad
    j = m \oplus 2^{r \bmod \log_2 W}

  Both have the same bits afterwards, and with nothing between them :math:`\log_2 W` rounds leave all
  workers with those of one mean. The weighted sum over all workers never changes. Each sends its
  values to one other: half of a ring all-reduce's bytes, and one message of latency. Where only
  one of a pair counts both have its values; where none does they keep theirs.

  Returns:
    A `Sync` of which each worker has a result of its own. It remembers the number of rounds. For
    parameters `periods` must say when a `'consensus'` is published.

  Raises:
    ValueError: at a sync, if the number of workers is no power of two.

  References:
    Kolehmainen et al., `NoLoCo <https://arxiv.org/abs/2506.10911>`_, 2025; Boyd et al., `Randomized
    Gossip Algorithms <https://doi.org/10.1109/TIT.2006.874516>`_, 2006
  """

  def init(tree):
    del tree
    return Memory(shared=jnp.zeros([], jnp.int32))

  def reduce(local, reference, memory, context):
    del reference
    bits = check_hypercube(worker_count(context.axis_name))
    if not bits:
      return local, memory
    weight = jnp.ones([], jnp.float32) if context.share is None else context.share.weight
    bit = memory.shared % bits
    sent = jax.tree.map(lambda x: jnp.where(weight > 0, x, 0), local)
    meet = [lambda mine, bit=bit: across(mine, bit, context.axis_name) for bit in range(bits)]
    theirs, other = jax.lax.switch(bit, meet, (sent, weight))
    # Both of a pair add up in one order: a product may be fused into the sum, and round otherwise.
    is_first = jax.lax.axis_index(context.axis_name) >> bit & 1 == 0
    in_order = lambda mine, its: (jnp.where(is_first, mine, its), jnp.where(is_first, its, mine))
    weights, total = in_order(weight, other), weight + other

    def mean(mine, its, kept):
      wide = at_least_float32(in_order(mine, its))
      first, second = (x * w.astype(x.dtype) for x, w in zip(wide, weights, strict=True))
      result = (first + second) / jnp.where(total > 0, total, 1).astype(first.dtype)
      return jnp.where(total > 0, result.astype(kept.dtype), kept)

    return jax.tree.map(mean, sent, theirs, local), Memory(shared=memory.shared + 1)

  return Sync(init, reduce, agrees=False)


def check_hypercube(workers: int) -> int:
  """Returns the dimensions of a hypercube with so many corners.

  Raises:
    ValueError: there is none.
  """
  bits = workers.bit_length() - 1
  if workers != 2**bits:
    raise ValueError(
      f'gossip pairs workers along the edges of a hypercube, which {workers} workers are not; '
      f'expected a power of two, {2**bits} or {2 ** (bits + 1)}, say.'
    )
  return bits


def across(tree: Tree, bit: int, axis_name: AxisName) -> Tree:
  """Returns what the worker sends whose number differs in a bit from this one's."""
  names, sizes = axis_sizes(axis_name)
  for name, size in reversed(list(zip(names, sizes, strict=True))):
    bits = check_hypercube(size)
    if bit < bits:
      return jax.lax.ppermute(tree, name, [(i, i ^ 2**bit) for i in range(size)])
    bit -= bits
  raise ValueError(f'there is no bit {bit} in the number of a worker.')
