"""Syncs that land late, in NumPy float64: Local Adam whose averages come `delay` steps after they were sent.

Written from the equations of each rule; nothing here is shared with the package under test.
"""

import numpy as np

from tests import reference


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
  gradient, x0, steps, periods, delays, rule, *, share=0.0, outer=None, rate=0.05, last=False
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
  """
  x, u, v = x0.copy(), np.zeros_like(x0), np.zeros_like(x0)
  model, momentum = x0[0].copy(), np.zeros_like(x0[0])
  bound, flight, seen = reference.moment_bound(0.9, 0.999), {}, []

  def sent_now(name, t):
    return (t + 1) % periods['xuv'.index(name)] == 0

  def send(name, t, value, goes_on):
    time = t + delays['xuv'.index(name)]
    flight[name] = (min(time, steps - 1) if last else time, value.mean(axis=0), goes_on.copy())

  def arrives(name, t):
    return name in flight and flight[name][0] == t

  for t in range(steps):
    update, u, v = reference.adam_step(gradient(t, x), u, v, t, rate)
    x = x + update
    moved = False
    for name in 'uv':
      value = u if name == 'u' else v
      if sent_now(name, t):
        send(name, t, value, value)
      if arrives(name, t):
        _, agreed, sent = flight.pop(name)
        moved, value = True, land(rule, value, agreed, sent, share, positive=name == 'v')
      u, v = (value, v) if name == 'u' else (u, value)
    if moved:  # Kept moments need not fit each other; means of both at once do, and nothing binds.
      v = np.maximum(v, (u / bound) ** 2)
    if sent_now('x', t):
      goes_on = x
      if rule == 'eager':
        goes_on = model - nesterov(outer, momentum, (model - x) / len(x))[0]
      send('x', t, x, goes_on)
      x = goes_on
    if arrives('x', t):
      _, agreed, sent = flight.pop('x')
      step, momentum = nesterov(outer, momentum, model - agreed)
      model = model - step
      x = land(rule, x, model, sent, share)
    seen.append((x.copy(), v.copy(), model.copy()))
  return [np.stack(each) for each in zip(*seen, strict=True)]
