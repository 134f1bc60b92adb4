"""EDiT's penalty on differences: who is unusually far does not count, who is farther counts less."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.averaging import (
  at_least_float32,
  AxisName,
  worker_count,
  worker_mean,
)
from desloc_jax.optimizer.syncs.sync import difference, Memory, Sync


class Past(NamedTuple):
  """What a worker has seen of the length of its difference, of one array."""

  mean: jax.Array  # float32 scalar.
  variance: jax.Array  # float32 scalar.
  seen: jax.Array  # float32 scalar: lengths that are in both.


def edit(
  temperature: float = 1.0,
  threshold: float = 3.0,
  clip: float = 10.0,
  alpha: float = 0.02,
  warmup: int = 10,
) -> Sync:
  r"""The mean of the differences, weighted by their lengths, array by array.

  With :math:`D_m = X - x_m`, :math:`n_m` its length, and :math:`\mu_m, \sigma_m` of its own past:

  .. math::
    w_m \propto \exp(-n_m / T), \quad w_m = 0 \text{ if } \frac{n_m - \mu_m}{\sigma_m} > z, \quad
    D = \sum_m w_m D_m, \quad X \leftarrow X - \min\Big(1, \frac{\phi}{\lVert D \rVert}\Big) D

  Mean and variance are moving averages of the lengths that were not unusual; the first ones count
  in full. Where all workers are unusual the array stays as it is. Sends one number of each array and
  worker and the mean. A length that is not finite is unusual. What a worker says of its own length
  is believed: for workers that break, not for those that lie.

  Args:
    temperature: T > 0; infinite: all lengths count the same.
    threshold: z > 0; infinite: no past is unusual.
    clip: :math:`\phi` > 0; infinite: no clipping. 10 and 1 are usual.
    alpha: of the moving averages, in (0, 1].
    warmup: syncs before a past counts. The published code has 120.

  Returns:
    A `Sync` for a quantity that has a reference: the parameters. It remembers three numbers of each
    array and worker. With temperature, threshold and clip infinite it is the mean, bit for bit.

  Raises:
    ValueError: an argument is out of range; at the first sync, if there is no reference.

  References:
    Cheng et al., `EDiT <https://arxiv.org/abs/2412.07210>`_, 2024
  """
  if not (temperature > 0 and threshold > 0 and clip > 0 and 0 < alpha <= 1 and warmup >= 0):
    raise ValueError(
      f'expected temperature, threshold and clip > 0, alpha in (0, 1] and warmup >= 0; got '
      f'{temperature}, {threshold}, {clip}, {alpha} and {warmup}.'
    )

  def init(tree):
    zero = jnp.zeros([], jnp.float32)
    return Memory(own=jax.tree.map(lambda _: Past(zero, zero, zero), tree))

  def reduce(local, reference, memory, context):
    if reference is None:
      raise ValueError('edit weighs differences from a reference: it is for the parameters.')
    leaves, structure = jax.tree.flatten(local)
    if not leaves:
      return local, memory
    lengths = jnp.stack([_length(d) for d in jax.tree.leaves(difference(local, reference))])
    past = Past(*(jnp.stack(x) for x in zip(*structure.flatten_up_to(memory.own), strict=True)))
    weight = jnp.ones([]) if context.share is None else context.share.weight
    weights = jnp.where(usual(lengths, past), weight, 0)
    after = _learn(past, lengths, weights > 0, alpha)
    if not math.isinf(temperature):
      weights = _softened(weights, lengths, temperature, context.axis_name)
    factors = worker_count(context.axis_name) / jax.lax.psum(weights, context.axis_name)
    parts = [
      jnp.where(w > 0, x * w.astype(x.dtype), 0) for x, w in zip(leaves, weights, strict=True)
    ]
    means = worker_mean(parts, context.axis_name)
    agreed = [
      jnp.where(jnp.isfinite(factor), _clipped(x * factor.astype(x.dtype), y, clip), y)
      for x, y, factor in zip(means, structure.flatten_up_to(reference), factors, strict=True)
    ]
    pasts = [Past(*(x[i] for x in after)) for i in range(len(leaves))]
    return structure.unflatten(agreed), Memory(own=structure.unflatten(pasts))

  def usual(lengths, past):
    if math.isinf(threshold):
      return jnp.isfinite(lengths)
    # A past without any variance is none to rounding.
    deviation = jnp.maximum(jnp.sqrt(past.variance), 1e-6 * past.mean)
    far = lengths - past.mean > threshold * deviation
    return jnp.isfinite(lengths) & ~(far & (past.seen >= max(warmup, 2)))

  return Sync(init, reduce)


def _length(x: jax.Array) -> jax.Array:
  return jnp.linalg.norm(at_least_float32(x).ravel()).astype(jnp.float32)


def _softened(
  weights: jax.Array, lengths: jax.Array, temperature: float, axis_name: AxisName
) -> jax.Array:
  """Returns weights [arrays] times exp(-length / temperature), the shortest length's times one."""
  least = jax.lax.pmin(jnp.where(weights > 0, lengths, jnp.inf), axis_name)
  beyond = jnp.where(weights > 0, lengths - least, 0)
  return weights * jnp.exp(-beyond / temperature)


def _clipped(mean: jax.Array, reference: jax.Array, most: float) -> jax.Array:
  if math.isinf(most):
    return mean
  length = _length(reference - mean)
  shorter = reference - (reference - mean) * (most / length).astype(mean.dtype)
  return jnp.where(length > most, shorter, mean)


def _learn(past: Past, lengths: jax.Array, learns: jax.Array, alpha: float) -> Past:
  """Returns the moving averages [arrays] with these lengths, where a worker learns of them."""
  step = jnp.maximum(alpha, 1 / (past.seen + 1))
  change = lengths - past.mean
  after = Past(
    past.mean + step * change,
    (1 - step) * (past.variance + step * change**2),
    past.seen + 1,
  )
  return Past(*(jnp.where(learns, new, old) for new, old in zip(after, past, strict=True)))
