"""DES-LOC: desynced low-communication adaptive optimizers, as optax transformations.

This package is importable on its own and needs JAX and optax only. The trainer around it lives in
the subpackages `model`, `data` and `train`, which nothing here imports.
"""

from desloc_jax.optimizer.periods import half_life, periods_from_half_lives
from desloc_jax.optimizer.transform import desloc, DeslocState, WORKER_AXES

__all__ = ['WORKER_AXES', 'DeslocState', 'desloc', 'half_life', 'periods_from_half_lives']
