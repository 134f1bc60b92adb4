"""An optax transformation that can also make the whole step."""

from collections.abc import Callable
import dataclasses
import functools

import optax

from desloc_jax.optimizer.worker_step.outside import Outside


class SteppingTransformation(optax.GradientTransformationExtraArgs):
  """A transformation over workers: optax's `init` and `update`, and `step` beside them.

  `step(grads, state, params, **extra_args)` returns what `optax.apply_updates(params, updates)` and
  `state` are after `update`, to the bit: `(params, state)`. Between syncs it returns `params`
  itself, where `update` makes updates of zeros that somebody has to add. It is what a training loop
  calls; `update` is for loops that know optax's contract only.
  """

  step: Callable[..., tuple[optax.Params, optax.OptState]]
  outside: Outside | None  # Exchanges what the step does not send itself.

  def __new__(
    cls, init: Callable, update: Callable, step: Callable, outside: Outside | None = None
  ):
    tx = super().__new__(cls, init, update)
    tx.step, tx.outside = step, outside  # No fields of the tuple: optax takes its two apart.
    return tx


def with_arguments(tx: SteppingTransformation, **arguments) -> SteppingTransformation:
  """Returns `tx` with these extra arguments at every step."""
  update, step = (functools.partial(each, **arguments) for each in (tx.update, tx.step))
  outside = tx.outside and dataclasses.replace(tx.outside, **arguments)
  return SteppingTransformation(tx.init, update, step, outside)
