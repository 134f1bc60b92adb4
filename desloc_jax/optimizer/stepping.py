"""An optax transformation that can also make the whole step."""

from collections.abc import Callable
import functools
from typing import Any

import optax


class SteppingTransformation(optax.GradientTransformationExtraArgs):
  """A transformation over workers: optax's `init` and `update`, and `step` beside them.

  `step(grads, state, params, **extra_args)` returns what `optax.apply_updates(params, updates)` and
  `state` are after `update`, to the bit: `(params, state)`. Between syncs it returns `params`
  itself, where `update` makes updates of zeros that somebody has to add. It is what a training loop
  calls; `update` is for loops that know optax's contract only.
  """

  step: Callable[..., tuple[optax.Params, optax.OptState]]
  exchange: Callable[..., Any] | None  # Of what the step does not send itself; see `outside`.

  def __new__(
    cls, init: Callable, update: Callable, step: Callable, exchange: Callable | None = None
  ):
    tx = super().__new__(cls, init, update)
    tx.step, tx.exchange = step, exchange  # No fields of the tuple: optax takes its two apart.
    return tx


def with_arguments(tx: SteppingTransformation, **arguments) -> SteppingTransformation:
  """Returns `tx` with these extra arguments at every step."""
  update, step = (functools.partial(each, **arguments) for each in (tx.update, tx.step))
  exchange = tx.exchange and functools.partial(tx.exchange, **arguments)
  return SteppingTransformation(tx.init, update, step, exchange)
