"""Runs a transformation on several workers, without a trainer."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax

from desloc_jax import WORKER_AXES
from desloc_jax.optimizer.ddp import local_params
from desloc_jax.optimizer.over_workers import worker_specs

# Compiles as users have it: tests optimise less, and XLA then rounds a local step otherwise when what
# is beside it in the program changes.
_AS_USERS = {
  'xla_backend_optimization_level': 3,
  'xla_llvm_disable_expensive_passes': False,
}
if jax.__version__.startswith('0.10.'):  # Later ones do not know it, nor another way.
  _AS_USERS['xla_cpu_use_fusion_emitters'] = True
jit_as_users = functools.partial(jax.jit, compiler_options=_AS_USERS)


def init(tx, params, workers):
  return jax.vmap(lambda: tx.init(params), axis_size=workers, out_axes=WORKER_AXES)()


def by_update(tx, grads, state, params, **extra):
  """Returns what a step leaves, by optax's contract."""
  updates, state = tx.update(grads, state, params, **extra)
  return optax.apply_updates(params, updates), state


def by_step(tx, *args, **extra):
  """Returns the same by `step`."""
  return tx.step(*args, **extra)


def make_step(tx, gradient, workers, extra=lambda t: {}, move=by_update):
  """Returns (t, state, params) -> (state, params); gradient is (t, worker, x) -> grads.

  `extra` gives the extra arguments of `move` at step t.
  """

  def of_worker(t, worker, state, params):
    grads = gradient(t, worker, local_params(state, params))
    params, state = move(tx, grads, state, params, **extra(t))
    return state, params

  of_all = jax.vmap(
    of_worker,
    in_axes=(None, 0, WORKER_AXES, None),
    out_axes=(WORKER_AXES, None),
    axis_name='workers',
  )
  return lambda t, state, params: of_all(t, jnp.arange(workers), state, params)


def make_manual_step(tx, gradient, mesh, move=by_update):
  """Returns `make_step`'s function by shard_map alone, without vmap: one worker for each index of
  the mesh axis 'workers', manual over that axis only, with the types of varying axes checked.
  """
  specs = worker_specs(WORKER_AXES)

  def step(t, state, params):
    own = on_own(lambda x: x[0], state)
    grads = gradient(t, jax.lax.axis_index('workers'), own.params)
    params, own = move(tx, grads, own, params)
    return on_own(lambda x: x[None], own), params

  def on_own(change, state):
    return jax.tree.map(
      lambda axis, tree: tree if axis is None else jax.tree.map(change, tree),
      WORKER_AXES,
      state,
      is_leaf=lambda axis: axis is None,
    )

  return jax.shard_map(
    step,
    mesh=mesh,
    in_specs=(P(), specs, P()),
    out_specs=(specs, P()),
    axis_names={'workers'},
    check_vma=True,
  )


def run(tx, params, gradient, workers, steps, compiler=jax.jit, **options):
  """Yields (state, consensus) after each of `steps` steps."""
  state = init(tx, params, workers)
  step = compiler(make_step(tx, gradient, workers, **options))
  for t in range(steps):
    state, params = step(t, state, params)
    yield state, params
