"""A whole step of all workers for a loop of one's own, and a check of loops that write it themselves."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from desloc_jax.optimizer.ddp import local_params
from desloc_jax.optimizer.over_workers import over_workers, WORKERS
from desloc_jax.optimizer.state import WORKER_AXES
from desloc_jax.optimizer.stepping import SteppingTransformation


def step_over_workers(
  tx: SteppingTransformation,
  loss: Callable,
  mesh: Mesh,
  *,
  has_aux: bool = False,
  axis: str = WORKERS,
) -> Callable:
  """Returns a compiled `step(params, state, batch) -> (params, state, loss)` of all workers.

  Each worker takes the gradient of `loss` at its own parameters. `params` and `state` are from
  `init_over_workers`; they are donated, and stay where they are. With a batch of the same shapes it
  compiles once.

  Args:
    tx: of `desloc` or `ddp`.
    loss: (params, batch of one worker) -> a scalar, or that and something else with `has_aux`.
    mesh: with an axis `axis` whose size divides the number of workers.
    has_aux: whether `loss` returns something else too.
    axis: the mesh axis of the workers.

  Returns:
    The step. Its batch, and what it returns last (the loss, with `has_aux` as `jax.value_and_grad`
    has it), are [workers, ...].

  Raises:
    ValueError: as `over_workers`.

  Example:
    >>> import jax, jax.numpy as jnp, optax, desloc_jax as dl
    >>> mesh = jax.make_mesh((1,), ('workers',))
    >>> tx = dl.desloc(optax.adam(0.1), {'params': 2, 'mu': 4, 'nu': 8})
    >>> step = dl.step_over_workers(tx, lambda w, goal: (w - goal) ** 2, mesh)
    >>> params, state = dl.init_over_workers(tx, jnp.float32(0), mesh, workers=4)
    >>> for _ in range(100):  # Each worker has a goal of its own; the mean of them is 1.5.
    ...   params, state, loss = step(params, state, jnp.arange(4.0))
    >>> round(float(params), 1)
    1.5
  """

  def of_worker(params, state, batch):
    value_and_grad = jax.value_and_grad(loss, has_aux=has_aux)
    value, grads = value_and_grad(local_params(state, params), batch)
    params, state = tx.step(grads, state, params, value=value[0] if has_aux else value)
    return params, state, value

  axes = (None, WORKER_AXES, 0)
  of_all = over_workers(of_worker, mesh, axes, axes, axis)
  compiled = None

  def step(params, state, batch):
    nonlocal compiled
    if compiled is None:  # Where the first arguments lie, all later ones do.
      kept = jax.tree.map(lambda x: x.sharding, (params, state))
      compiled = jax.jit(of_all, donate_argnums=(0, 1), out_shardings=(*kept, None))
    return compiled(params, state, batch)

  return step
