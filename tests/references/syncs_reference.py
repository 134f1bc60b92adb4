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


# ---- Robust averages: x [workers, n], weights [workers] or None -> [n].


def heads(x, weights, byzantine, finite_only=True):
  """Returns who is there, their weights, and how many of them may lie."""
  weights = np.ones(len(x)) if weights is None else weights
  there = weights > 0
  finite = np.isfinite(x).all(axis=1) | (not finite_only)
  liars = max(byzantine - (there & ~finite).sum(), 0)
  there &= finite
  return x[there], weights[there], min(liars, max(there.sum() - 1, 0) // 2)


def trimmed(x, w, f):
  order = np.argsort(x, axis=0, kind='stable')[f : len(x) - f]
  return np.average(np.take_along_axis(x, order, axis=0), axis=0, weights=w[order])


def median(x, w, f):
  return trimmed(x, w, (len(x) - 1) // 2)


def krum(x, w, f):
  distances = ((x[:, None] - x[None]) ** 2).sum(axis=-1)
  scores = [np.sort(np.delete(d, i))[: len(x) - f - 1].sum() for i, d in enumerate(distances)]
  return x[np.argmin(scores)]


def geometric_median(x, w, f, smoothing=0.1, rounds=8):
  distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
  medians = np.sort(distances, axis=1)[:, len(x) // 2]
  z = x[np.argmin(medians)]
  for _ in range(rounds):
    c = w / np.maximum(np.linalg.norm(x - z, axis=1), max(smoothing * medians.min(), 1e-30))
    z = np.average(x, axis=0, weights=c)
  return z


def clip_to_median(x, w, f):
  lengths = np.linalg.norm(x, axis=1)
  scales = np.minimum(1, np.median(lengths) / lengths)
  return (x * (w * scales)[:, None]).sum(axis=0) / w.sum()


def mixed(x, w, f):
  distances = ((x[:, None] - x[None]) ** 2).sum(axis=-1)
  near = np.sort(np.argsort(distances, axis=1, kind='stable')[:, : len(x) - f], axis=1)
  return np.stack([np.average(x[rows], axis=0, weights=w[rows]) for rows in near])


class Robust:
  def __init__(self, rule, byzantine, neighbours=False, differences=False):
    self.rule, self.byzantine = rule, byzantine
    self.neighbours, self.differences = neighbours, differences

  def __call__(self, local, reference, weights):
    start = reference if self.differences and reference is not None else None
    x = local if start is None else start - local
    by_coordinate = self.rule in (trimmed, median) and not self.neighbours
    x, w, f = heads(x, weights, self.byzantine, finite_only=not by_coordinate)
    y = mixed(x, w, f) if self.neighbours else x
    agreed = self.rule(y, w, f)
    return agreed if start is None else start - agreed


class Edit:
  """Softmax of negative lengths over who is usual, a clip; `sizes` are those of the arrays."""

  def __init__(self, sizes, workers, temperature, threshold, clip, alpha, warmup):
    self.cuts = np.cumsum(sizes)[:-1]
    self.mean, self.variance = np.zeros((2, len(sizes), workers))
    self.count = np.zeros((len(sizes), workers))
    self.options = temperature, threshold, clip, alpha, warmup

  def __call__(self, local, reference, weights):
    weights = np.ones(len(local)) if weights is None else weights
    parts = np.split(reference - local, self.cuts, axis=1)
    steps = [self.step(i, d, weights) for i, d in enumerate(parts)]
    return reference - np.concatenate(steps)

  def step(self, i, d, weights):
    temperature, threshold, clip, alpha, warmup = self.options
    lengths, steps = np.linalg.norm(d, axis=1), np.zeros(d.shape[1])
    deviation = np.maximum(np.sqrt(self.variance[i]), 1e-6 * self.mean[i])
    z = (lengths - self.mean[i]) / np.where(deviation > 0, deviation, 1)
    usual = np.isfinite(lengths) & ~((self.count[i] >= max(warmup, 2)) & (z > threshold))
    counted = usual & (weights > 0)
    if counted.any():
      c = weights[counted] * np.exp(-(lengths[counted] - lengths[counted].min()) / temperature)
      steps = np.average(d[counted], axis=0, weights=c)
      steps *= min(1, clip / np.linalg.norm(steps))
    for m in np.flatnonzero(counted):
      rate = max(alpha, 1 / (self.count[i, m] + 1))
      change = lengths[m] - self.mean[i, m]
      self.mean[i, m] += rate * change
      self.variance[i, m] = (1 - rate) * (self.variance[i, m] + rate * change**2)
      self.count[i, m] += 1
    return steps


class FedStale:
  """Over who is there, and what it lacks of all by the differences sent last."""

  def __init__(self, beta, shape):
    self.beta, self.h = beta, np.zeros(shape)

  def __call__(self, local, reference, weights):
    there = weights > 0
    d = (reference - local)[there]
    step = np.average(d, axis=0, weights=weights[there])
    lacks = self.h.mean(axis=0) - np.average(self.h[there], axis=0, weights=weights[there])
    self.h[there] = d
    return reference - step - self.beta * lacks
