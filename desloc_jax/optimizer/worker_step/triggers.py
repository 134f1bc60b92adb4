"""When each quantity is averaged: periodically, by a schedule, or with a probability."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from desloc_jax.optimizer.sync_periods import Period, Phased, Timetable


def due_now(
  periods: Mapping[str, Period],
  counters: Mapping[str, jax.Array],
  step: jax.Array,
  coin_key: jax.Array | None,
  warmup_steps: int,
  done: jax.Array,
) -> dict[str, jax.Array]:
  """Returns, by quantity, a boolean scalar: is it to be averaged at this step?

  Args:
    periods: steps between averages, with a phase or without, a schedule or timetable of them, or
      None for never after the warm-up.
    counters: int32 scalars, steps since the last average, this one included.
    step: int32 scalar, steps done before this one.
    coin_key: None for averages when the period has passed; else they are drawn with probability
      1 / period from this key, one coin a quantity that all workers share.
    warmup_steps: in so many steps at the beginning everything is averaged.
    done: int32 scalar, steps whose results would be averaged, for timetables and phases.
  """
  due = {}
  for index, (name, period) in enumerate(periods.items()):
    if period is None:
      due[name] = jnp.zeros([], bool)
    elif coin_key is None and isinstance(period, Timetable | Phased):
      due[name] = period.count(done) > period.count(done - counters[name])
    elif coin_key is None:
      due[name] = counters[name] >= _at(period, step)
    else:
      key = jax.random.fold_in(jax.random.fold_in(coin_key, step), index)
      # In float32 always, so that the coins are the same with jax_enable_x64.
      chance = jnp.asarray(1 / _at(period, step), jnp.float32)
      due[name] = jax.random.bernoulli(key, chance)
    if warmup_steps:
      due[name] |= step < warmup_steps
  return due


def _at(period: Period, step: jax.Array):
  return period(step) if callable(period) else period


def steps_until_due(
  period: int | Timetable | None, counter: int, done: int, *, pre: bool, warmup_steps: int = 0
) -> int | None:
  """Returns in how many steps a quantity is averaged next, 1 for the next one; None: never.

  Args:
    period: of the quantity; see `due_now`.
    counter: steps since its last average.
    done: steps done.
    pre: whether averages come before a step, not after it.
    warmup_steps: see `due_now`.
  """
  counter = abs(counter)  # See `transform.synced`.
  if done < warmup_steps:
    return 1
  time = None
  if isinstance(period, Timetable | Phased):
    time = period.after(done - counter)
  elif period is not None:
    time = done - counter + period
  return None if time is None else max(1, time + pre - done)
