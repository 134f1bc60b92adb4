"""Inner optimizers by name: optax's, with the paper's decays as defaults."""

from collections.abc import Callable
import dataclasses

import jax
import optax

from desloc_jax.optimizer.control_variates import control_variates
from desloc_jax.optimizer.quasi_hyperbolic import scale_by_qh_adam, scale_by_qh_adopt


@dataclasses.dataclass(frozen=True)
class InnerOptimizer:
  """One inner optimizer.

  Attributes:
    scale: makes what goes between gradient clipping and the learning rate, from options by name.
    defaults: the options that it takes, and their values where the configuration has none. They are
      those of the paper's experiments where it used the optimizer, else optax's.
    note: what it computes, where that may differ from what its paper prints.
  """

  scale: Callable[..., optax.GradientTransformation]
  defaults: dict[str, object]
  note: str = ''


def _sgd(momentum, nesterov):
  return optax.trace(momentum, nesterov) if momentum else optax.identity()


def _rmsprop(b2, eps):
  return optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)


def _ademamix(b1, b2, b3, alpha, eps):
  return optax.contrib.scale_by_ademamix(b1, b2, b3, alpha, eps)


def _muon(momentum, b1, b2, eps):
  """Matrices by Muon, all else (embedding, norms, biases) by Adam; each has moments of its own."""
  by_kind = {
    'muon': optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=_matrix_dimensions),
    'adam': optax.scale_by_adam(b1, b2, eps),
  }
  return optax.partition(
    by_kind,
    lambda params: jax.tree.map(lambda m: 'muon' if m else 'adam', is_hidden_matrix(params)),
  )


INNER_OPTIMIZERS = {
  'sgd': InnerOptimizer(_sgd, {'momentum': 0.9, 'nesterov': False}),
  'adam': InnerOptimizer(
    optax.scale_by_adam,
    {'b1': 0.95, 'b2': 0.95, 'eps': 1e-8, 'eps_root': 0.0, 'nesterov': False},
    'bias-corrected, which Algorithm 1 is not; eps_root goes under the root, as in its theory',
  ),
  'adopt': InnerOptimizer(
    optax.contrib.scale_by_adopt,
    {'b1': 0.95, 'b2': 0.9999, 'eps': 1e-6, 'nesterov': False},
    'the first step only sets the second moment; the clamp grows as t^0.25',
  ),
  'ademamix': InnerOptimizer(
    _ademamix, {'b1': 0.9, 'b2': 0.999, 'b3': 0.9999, 'alpha': 6.0, 'eps': 1e-8}
  ),
  'lion': InnerOptimizer(
    optax.scale_by_lion, {'b1': 0.9, 'b2': 0.99}, 'b2 is the decay of its one moment'
  ),
  'rmsprop': InnerOptimizer(
    _rmsprop, {'b2': 0.95, 'eps': 1e-8}, 'bias-corrected, eps outside the root: Adam with b1 = 0'
  ),
  'muon': InnerOptimizer(
    _muon,
    {'momentum': 0.95, 'b1': 0.9, 'b2': 0.95, 'eps': 1e-8},
    'hidden matrices by Muon, the embedding and the scales by Adam',
  ),
  'qh_adam': InnerOptimizer(
    scale_by_qh_adam, {'b1': 0.999, 'b2': 0.999, 'eps': 1e-8, 'w': 0.98}, "MT-DAO's Adam"
  ),
  'qh_adopt': InnerOptimizer(
    scale_by_qh_adopt, {'b1': 0.999, 'b2': 0.9999, 'eps': 1e-6, 'w': 0.98}, "MT-DAO's ADOPT"
  ),
}
# adamw is adam: decoupled weight decay is an option of each of them.
INNER_OPTIMIZERS['adamw'] = INNER_OPTIMIZERS['adam']

# Names that someone may look for, and why they are not there.
REFUSED = {
  'schedule_free': (
    'its gradients are taken at an interpolation that only its own evaluation function knows, and '
    'its averaged model and the consensus would be two answers to one question'
  ),
}


def make_inner(
  name: str,
  learning_rate: optax.ScalarOrSchedule,
  *,
  clip_norm: float = 0.0,
  clip_value: float = 0.0,
  weight_decay: float = 0.0,
  control: bool = False,
  **options,
) -> optax.GradientTransformation:
  """Returns clipping, the optimizer called `name`, decoupled weight decay and the learning rate.

  Args:
    name: a key of `INNER_OPTIMIZERS`.
    learning_rate: a number or an optax schedule.
    clip_norm: global norm that gradients are clipped to before the moments; 0: no clipping.
    clip_value: bound of each coordinate (the theory's clipping); 0: no clipping.
    weight_decay: decoupled, applied to matrices only; 0: none.
    control: whether clipped gradients are corrected by `control_variates`.
    **options: of the optimizer; None: its default.

  Raises:
    ValueError: an option is given that the optimizer does not take.
  """
  optimizer = INNER_OPTIMIZERS[name]
  chosen = {key: value for key, value in options.items() if value is not None}
  if unknown := sorted(chosen.keys() - optimizer.defaults.keys()):
    raise ValueError(
      f'inner.{unknown[0]} is set, but {name} takes {", ".join(optimizer.defaults) or "no option"}.'
    )
  parts = [
    *([optax.clip_by_global_norm(clip_norm)] if clip_norm else []),
    *([optax.clip(clip_value)] if clip_value else []),
    *([control_variates()] if control else []),
    optimizer.scale(**{**optimizer.defaults, **chosen}),
    *([optax.add_decayed_weights(weight_decay, mask=is_matrix)] if weight_decay else []),
    optax.scale_by_learning_rate(learning_rate),
  ]
  return optax.chain(*parts)


def is_matrix(params: optax.Params):
  """Returns, for each parameter, whether it is a matrix or a stack of them.

  The scales of norms are [layers, width] under a scan over layers, so their name tells them apart.
  """
  return jax.tree.map_with_path(
    lambda path, x: x.ndim >= 2 and 'scale' not in jax.tree_util.keystr(path), params
  )


def is_hidden_matrix(params: optax.Params):
  """Returns, for each parameter, whether it is a matrix other than an embedding."""
  return jax.tree.map_with_path(
    lambda path, matrix: matrix and 'embedding' not in jax.tree_util.keystr(path),
    is_matrix(params),
  )


def _matrix_dimensions(params: optax.Params):
  # Of the last two axes; one in front of them counts layers, which are orthogonalised one by one.
  return jax.tree.map(lambda x: optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), params)
