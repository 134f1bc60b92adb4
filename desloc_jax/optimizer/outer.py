"""Outer optimizers by name: what steps on the pseudo-gradient, consensus - agreed."""

from collections.abc import Callable
import dataclasses
import inspect

import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class OuterOptimizer:
  """One outer optimizer.

  Attributes:
    make: makes it from options by name.
    defaults: the options that it takes, and their values where the run has none.
  """

  make: Callable[..., optax.GradientTransformation]
  defaults: dict[str, object]


def normalised(learning_rate: float) -> optax.GradientTransformation:
  r"""Steps of a length that nothing but their number decides.

  .. math::
    X \leftarrow X - \frac{\eta}{\sqrt t} \frac{R}{\lVert R \rVert}

  with R what the workers agree on, and t = 1, 2, ... the outer steps.

  Args:
    learning_rate: length of the first step, over all parameters.
  """
  rate = lambda count: learning_rate / jnp.sqrt(count + 1)
  return optax.chain(optax.normalize_by_update_norm(), optax.scale_by_learning_rate(rate))


def momentum_schedule(
  momentum: float, steps: int, warmup: float, decay: float
) -> optax.Schedule | float:
  """Returns a momentum that rises linearly from 0 in the first outer steps and falls to 0 in the last.

  Args:
    momentum: between the two.
    steps: outer steps of the run.
    warmup: share of them in which it rises.
    decay: share of them in which it falls.
  """
  if not warmup and not decay:
    return momentum
  rises, falls = max(1, warmup * steps), max(1, decay * steps)

  def schedule(count):
    up = jnp.minimum(1.0, (count + 1) / rises) if warmup else 1.0
    down = jnp.clip((steps - count - 1) / falls, 0.0, 1.0) if decay else 1.0
    return momentum * jnp.minimum(up, down)

  return schedule


def _sgd(learning_rate, momentum, nesterov):
  if callable(momentum):
    make = optax.inject_hyperparams(optax.sgd, static_args='nesterov')
    return make(learning_rate, momentum=momentum, nesterov=nesterov)
  return optax.sgd(learning_rate, momentum or None, nesterov)


OUTER_OPTIMIZERS = {
  'sgd': OuterOptimizer(_sgd, {'learning_rate': 0.7, 'momentum': 0.9, 'nesterov': True}),
  'normalised': OuterOptimizer(normalised, {'learning_rate': 1.0}),
}


def make_outer(name: str, **options) -> optax.GradientTransformation:
  """Returns an outer optimizer: one of `OUTER_OPTIMIZERS`, or of optax by its name there.

  Args:
    name: 'sgd', 'normalised', or 'adam', 'lion', ... of `optax` and `optax.contrib`.
    **options: None where unset: then its own default, and a learning rate of 0.7.

  Raises:
    ValueError: there is no such optimizer, or it does not take an option.
  """
  chosen = {key: value for key, value in options.items() if value is not None}
  make, defaults, takes = find_outer(name)
  if unknown := sorted(chosen.keys() - takes):
    raise ValueError(f'outer.{unknown[0]} is set, but the outer optimizer {name} does not take it.')
  return make(**{**defaults, **chosen})


def find_outer(name: str) -> tuple[Callable, dict[str, object], set[str]]:
  """Returns what makes an outer optimizer, its defaults, and the options that it takes.

  Raises:
    ValueError: there is no such optimizer.
  """
  if name in OUTER_OPTIMIZERS:
    ours = OUTER_OPTIMIZERS[name]
    return ours.make, ours.defaults, set(ours.defaults)
  make = getattr(optax, name, None) or getattr(optax.contrib, name, None)
  takes = set(inspect.signature(make).parameters) if inspect.isfunction(make) else set()
  if make is None or 'learning_rate' not in takes:
    raise ValueError(
      f'outer.name is {name!r}; expected {", ".join(OUTER_OPTIMIZERS)} or an optimizer of optax '
      'with a learning rate: adam, adamw, lion, ...'
    )
  return make, {'learning_rate': 0.7}, takes
