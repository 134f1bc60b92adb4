"""Inner optimizers by name, each a chain of optax parts with the paper's default decays."""

from collections.abc import Callable
import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class InnerOptimizer:
  """One inner optimizer.

  Attributes:
    scale: makes the transformation between gradient clipping and the learning rate, from
      `b1`, `b2`, `eps`, `momentum` and `nesterov` by name.
    defaults: what applies where the configuration leaves a value unset.
  """

  scale: Callable[..., optax.GradientTransformation]
  defaults: dict[str, float]


def _sgd(*, momentum, nesterov, **_):
  return optax.trace(momentum, nesterov) if momentum else optax.identity()


def _adam(*, b1, b2, eps, nesterov, **_):
  return optax.scale_by_adam(b1, b2, eps, nesterov=nesterov)


def _adopt(*, b1, b2, eps, nesterov, **_):
  return optax.contrib.scale_by_adopt(b1, b2, eps, nesterov=nesterov)


# Decays and eps: the paper's experiments where it used the optimizer, else optax's.
INNER_OPTIMIZERS = {
  'sgd': InnerOptimizer(_sgd, {}),
  'adam': InnerOptimizer(_adam, {'b1': 0.95, 'b2': 0.95, 'eps': 1e-8}),
  'adopt': InnerOptimizer(_adopt, {'b1': 0.95, 'b2': 0.9999, 'eps': 1e-6}),
}


def make_inner(
  name: str,
  learning_rate: optax.ScalarOrSchedule,
  *,
  clip_norm: float = 0.0,
  weight_decay: float = 0.0,
  **options,
) -> optax.GradientTransformation:
  """Returns clipping, the optimizer called `name`, decoupled weight decay and the learning rate.

  Args:
    name: a key of `INNER_OPTIMIZERS`.
    learning_rate: a number or an optax schedule.
    clip_norm: global norm that gradients are clipped to before the moments; 0: no clipping.
    weight_decay: decoupled, applied to parameters of two dimensions or more; 0: none.
    **options: `b1`, `b2`, `eps` (None: the optimizer's default), `momentum`, `nesterov`.
  """
  optimizer = INNER_OPTIMIZERS[name]
  chosen = {key: value for key, value in options.items() if value is not None}
  parts = [optimizer.scale(**{**options, **optimizer.defaults, **chosen})]
  if clip_norm:
    parts.insert(0, optax.clip_by_global_norm(clip_norm))
  if weight_decay:
    parts.append(optax.add_decayed_weights(weight_decay, mask=_is_matrix))
  return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))


def _is_matrix(params: optax.Params):
  # The scales of the norms are [layers, width] under a scan: a matrix ends in a kernel's name.
  return jax.tree.map_with_path(
    lambda path, x: x.ndim >= 2 and 'scale' not in jax.tree_util.keystr(path), params
  )
