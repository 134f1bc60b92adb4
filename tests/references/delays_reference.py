"""Syncs that land late, in NumPy float64: Local Adam whose averages come `delay` steps after they were sent.

Written from the equations of each rule; nothing here is shared with the package under test.
"""

import numpy as np

from tests.references import reference


def land(rule, now, agreed, sent, share, positive=False):
  """y is `sent`, z `now`, X `agreed`, alpha `share`."""
  if rule in ('keep', 'eager'):
    kept = agreed + now - sent
    return np.maximum(kept, np.minimum(agreed, now)) if positive else kept
  return share * now + (1 - share) * agreed if rule == 'mix' else np.broadcast_to(agreed, now.shape)


def nesterov(outer, momentum, delta):
  """Returns the step of the outer optimizer on a pseudo-gradient, and its momentum."""
  if outer is None:
    return delta, momentum
  rate, decay = outer
  momentum = delta + decay * momentum
  return rate * (delta + decay * momentum), momentum


def run(
  gradient,
  x0,
  steps,
  periods,
  delays,
  rule,
  *,
  share=0.0,
  outer=None,
  rate=0.05,
  last=False,
  parts=None,
):
  """Returns x [steps, workers, n], v likewise, and the consensus [steps, n].

  Args:
    gradient: (t, x [workers, n]) -> [workers, n].
    x0: [workers, n], equal rows.
    steps: how many.
    periods: of x, u and v.
    delays: of x, u and v.
    rule: of x; where it is 'eager' moments are kept.
    share: alpha.
    outer: (rate, momentum) of Nesterov; None: averaging.
    rate: of Adam.
    last: whether nothing stays in flight after the last step.
    parts: (columns, periods, how many steps early those of x, u and v are averaged) of each part that
      is averaged by itself; None: all columns together.
  """
  parts = parts or [(np.arange(x0.shape[1]), periods, (0, 0, 0))]
  x, u, v = x0.copy(), np.zeros_like(x0), np.zeros_like(x0)
  model, momentum = x0[0].copy(), np.zeros_like(x0[0])
  bound, flight, seen = reference.moment_bound(0.9, 0.999), {}, []

  def send(name, part, t, value, goes_on):
    i = 'xuv'.index(name)
    _, own, early = parts[part]
    if (t + 1 + early[i]) % own[i] == 0:
      time = t + delays[i]
      time = min(time, steps - 1) if last else time
      flight[name, part] = time, value.mean(axis=0), goes_on.copy()
      return True
    return False

  def arrival(name, part, t):
    return flight.pop((name, part))[1:] if flight.get((name, part), (-1,))[0] == t else None

  for t in range(steps):
    update, u, v = reference.adam_step(gradient(t, x), u, v, t, rate)
    x = x + update
    moved = False
    for part, (columns, *_) in enumerate(parts):
      for name, value in (('u', u), ('v', v)):
        send(name, part, t, value[:, columns], value[:, columns])
        if (arrived := arrival(name, part, t)) is not None:
          moved = True
          value[:, columns] = land(rule, value[:, columns], *arrived, share, positive=name == 'v')
    if moved:  # Kept moments need not fit each other; means of both at once do, and nothing binds.
      v = np.maximum(v, (u / bound) ** 2)
    for part, (columns, *_) in enumerate(parts):
      local, consensus = x[:, columns], model[columns]
      goes_on = local
      if rule == 'eager':
        goes_on = consensus - nesterov(outer, momentum[columns], (consensus - local) / len(x))[0]
      if send('x', part, t, local, goes_on):
        x[:, columns] = goes_on
      if (arrived := arrival('x', part, t)) is not None:
        agreed, sent = arrived
        step, momentum[columns] = nesterov(outer, momentum[columns], consensus - agreed)
        model[columns] = consensus - step
        x[:, columns] = land(rule, x[:, columns], model[columns], sent, share)
    seen.append((x.copy(), v.copy(), model.copy()))
  return [np.stack(each) for each in zip(*seen, strict=True)]
