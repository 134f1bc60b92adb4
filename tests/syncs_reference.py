"""The syncs in NumPy float64, written from their equations: the tests' oracle.

Vectors are [workers, n]. Nothing here is shared with the package under test. What travels as
float32 (scales, code books) is rounded to it here too.
"""

import numpy as np


def sent_as_float32(x):
  return np.asarray(x, np.float32).astype(np.float64)


def in_blocks(code, block):
  """Returns a code of vectors from one of blocks; the last block is filled with zeros."""

  def of_vector(x):
    padded = np.pad(x, (0, -len(x) % block)).reshape(-1, block)
    return np.concatenate([code(row) for row in padded])[: len(x)]

  return of_vector


def uniform(bits):
  most = 2 ** (bits - 1) - 1

  def code(x):
    scale = sent_as_float32(np.abs(x).max() / most)
    return scale * np.clip(np.rint(x / scale), -most, most) if scale else 0 * x

  return code


def four_levels(x):
  scale = sent_as_float32(1.25 * np.abs(x).mean())
  return scale * (np.clip(np.floor(x / (scale or 1)), -2, 1) + 0.5)


def logarithmic(bits):
  def code(x):
    if not x.any():
      return 0 * x
    y = np.log2(x[x > 0])
    least = sent_as_float32(max(y.min(), y.max() - 24))
    step = sent_as_float32((y.max() - least) / (2**bits - 2))
    steps = np.clip(np.rint((y - least) / (step or 1)), 0, 2**bits - 2)
    out = np.zeros_like(x)
    out[x > 0] = 2 ** (least + step * steps)
    return out

  return code


def largest(keep, bits):
  def code(x):
    places = np.argsort(-np.abs(x), kind='stable')[:keep]
    values = x[places]
    out = np.zeros_like(x)
    if bits == 32:
      out[places] = sent_as_float32(values)
      return out
    width = 6 * values.std() / 2**bits
    bins = np.floor((values - values.mean()) / (width or 1)) + 2 ** (bits - 1)
    bins = np.clip(bins, 0, 2**bits - 1)
    for b in np.unique(bins):
      out[places[bins == b]] = sent_as_float32(values[bins == b].mean())
    return out

  return code


def slices(code, block):
  """Two-sided: (z, weights) -> (sent, agreed); the second error is on the slice's owner."""
  encode = in_blocks(code, block)

  def channel(z, weights):
    length = z.shape[1]
    z = np.pad(z, [(0, 0), (0, -length % block)])  # What fills the last block need not become zero.
    sent = np.stack([encode(row) for row in z])
    mean = np.average(sent, axis=0, weights=weights)
    agreed = encode(mean)
    workers, n = z.shape
    rows = -(-n // block)
    owner = np.minimum(np.arange(n) // block // -(-rows // workers), workers - 1)
    share = np.ones(workers) / workers if weights is None else weights / weights.sum()
    for worker in range(workers):
      if share[worker] > 0:
        mine = owner == worker
        sent[worker, mine] += (agreed - mean)[mine] / share[worker]
    return sent[:, :length], agreed[:length]

  return channel


def everybody(code, block, senders_only):
  encode = in_blocks(code, block)

  def channel(z, weights):
    sent = np.stack([encode(row) for row in z])
    weights = np.ones(len(z)) if weights is None else weights
    counted = weights[:, None] * ((sent != 0) if senders_only else np.ones_like(sent))
    total = (weights[:, None] * sent).sum(axis=0)
    count = counted.sum(axis=0)
    return sent, np.divide(total, count, out=np.zeros_like(total), where=count > 0)

  return channel


class Feedback:
  """z = D + e, (s, mean) = channel(z), e <- decay (z - s), X <- X - mean."""

  def __init__(self, channel, decay, shape, positive=False):
    self.channel, self.decay, self.positive = channel, decay, positive
    self.e = np.zeros(shape)

  def __call__(self, local, reference, weights):
    counts = np.ones(len(local), bool) if weights is None else weights > 0
    difference = local if reference is None else reference - local
    z = difference + self.e
    if self.positive:
      z = np.maximum(z, difference / 2)
    z[~counts] = 0
    sent, agreed = self.channel(z, weights)
    self.e[counts] = self.decay * (z - sent)[counts]
    return agreed if reference is None else reference - agreed


class EControl:
  """s = C(eta e + D - h), e <- e + D - h - s, h <- h + s, X <- X - sum of the means of s."""

  def __init__(self, channel, eta, shape):
    self.channel, self.eta = channel, eta
    self.e, self.h, self.mean = np.zeros(shape), np.zeros(shape), np.zeros(shape[1])

  def __call__(self, local, reference, weights):
    counts = np.ones(len(local), bool) if weights is None else weights > 0
    d = (local if reference is None else reference - local) - self.h
    z = self.eta * self.e + d
    z[~counts] = 0
    sent, agreed = self.channel(z, weights)
    self.e[counts] += (d - sent)[counts]
    self.h[counts] += sent[counts]
    self.mean = self.mean + agreed
    return self.mean if reference is None else reference - self.mean


class Anchored:
  """The last agreed value is the reference."""

  def __init__(self, inner, start):
    self.inner, self.anchor = inner, start

  def __call__(self, local, reference, weights):
    self.anchor = self.inner(local, self.anchor, weights)
    return self.anchor
