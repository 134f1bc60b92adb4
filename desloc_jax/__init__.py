"""DES-LOC: desynced low-communication adaptive optimizers, as optax transformations.

This package is importable on its own and needs JAX and optax only. The trainer around it lives in
the subpackages `model`, `data` and `train`, which nothing here imports. JAX is imported when a name
is first used, so that commands answer at once.
"""

import importlib
from typing import Any, TYPE_CHECKING

from desloc_jax.version import __version__ as __version__

if TYPE_CHECKING:
  from desloc_jax.optimizer.ddp import ddp, local_params
  from desloc_jax.optimizer.gradient_check import with_gradient_check
  from desloc_jax.optimizer.health import HealthCheck
  from desloc_jax.optimizer.over_workers import (
    AXIS_NAMES,
    init_over_workers,
    over_workers,
    shardings_over_workers,
  )
  from desloc_jax.optimizer.own_loop import step_over_workers
  from desloc_jax.optimizer.state import DeslocState, landed, synced, WORKER_AXES
  from desloc_jax.optimizer.sync_periods import (
    growing_timetables,
    half_life,
    periods_from_half_lives,
    Timetable,
  )
  from desloc_jax.optimizer.transform import desloc
  from desloc_jax.programs.ledger import Ledger, read_ledger, transform_ledger

# Where each public name is; the imports above say the same to type checkers and editors.
_ROOMS = {
  'optimizer.ddp': ('ddp', 'local_params'),
  'optimizer.gradient_check': ('with_gradient_check',),
  'optimizer.health': ('HealthCheck',),
  'optimizer.over_workers': (
    'AXIS_NAMES', 'init_over_workers', 'over_workers', 'shardings_over_workers',
  ),
  'optimizer.own_loop': ('step_over_workers',),
  'optimizer.sync_periods': (
    'Timetable', 'growing_timetables', 'half_life', 'periods_from_half_lives',
  ),
  'optimizer.state': ('DeslocState', 'WORKER_AXES', 'landed', 'synced'),
  'optimizer.transform': ('desloc',),
  'programs.ledger': ('Ledger', 'read_ledger', 'transform_ledger'),
}  # fmt: skip
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
  'AXIS_NAMES',
  'DeslocState',
  'HealthCheck',
  'Ledger',
  'Timetable',
  'WORKER_AXES',
  'ddp',
  'desloc',
  'growing_timetables',
  'half_life',
  'init_over_workers',
  'landed',
  'local_params',
  'over_workers',
  'periods_from_half_lives',
  'read_ledger',
  'shardings_over_workers',
  'step_over_workers',
  'synced',
  'transform_ledger',
  'with_gradient_check',
]


def __getattr__(name: str) -> Any:
  if name not in _ROOM_OF:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  value = getattr(importlib.import_module(f'{__name__}.{_ROOM_OF[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
