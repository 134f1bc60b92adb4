"""One training step of all workers, as one compiled program for any number of devices.

Manual over `workers`, so that every exchange between workers is one that the transform wrote;
automatic over `fsdp`, so that XLA shards the model inside a worker.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import optax

from desloc_jax.checkpoints.train_state import STATE_AXES, TrainState
from desloc_jax.optimizer.ddp import local_params
from desloc_jax.optimizer.health import judged
from desloc_jax.optimizer.over_workers import over_workers, WORKERS
from desloc_jax.optimizer.state import synced, WORKER_AXES
from desloc_jax.optimizer.stepping import SteppingTransformation
from desloc_jax.train.setup.mesh import FSDP

# Loss of one worker's parameters on [batch, seq_len + 1] tokens, and scalars about the model.
LossFunction = Callable[[optax.Params, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


# Metrics of a step: float32 [workers] of each worker, and scalars.
METRIC_AXES = {
  'loss': 0, 'model': 0, 'grad_norm': 0, 'drift': 0, 'health': 0, 'learning_rate': None,
  'syncs': None, 'counters': None, 'in_flight': None,
}  # fmt: skip


def init_state(tx: optax.GradientTransformation, workers: int, params: optax.Params) -> TrainState:
  """Returns the state before the first step: every worker with the same parameters."""
  optimizer = jax.vmap(lambda: tx.init(params), axis_size=workers, out_axes=WORKER_AXES)()
  syncs = jax.tree.map(jnp.zeros_like, optimizer.counters)
  return TrainState(jnp.zeros([], jnp.int32), params, optimizer, syncs)


def make_train_step(
  loss: LossFunction,
  tx: SteppingTransformation,
  schedule: optax.Schedule,
  mesh: Mesh,
) -> Callable[[TrainState, jax.Array, jax.Array | None], tuple[TrainState, dict[str, Any]]]:
  """Returns `step(state, tokens, active) -> (state, metrics)`, to be jitted with `state` donated.

  Args:
    loss: in nats per token, the mean over the tokens.
    tx: over the axes `over_workers.AXIS_NAMES`.
    schedule: of the learning rate, for the metrics.
    mesh: from `mesh.make_mesh`.

  `tokens` are int32 [workers, micro-batches, sequences, seq_len + 1]; `active` is boolean
  [workers], or None: all are there.
  """

  def worker_step(state: TrainState, tokens: jax.Array, active: jax.Array | None):
    params = local_params(state.optimizer, state.params)
    (mean_loss, about_model), grads = accumulate(loss, params, tokens)
    consensus, optimizer = tx.step(
      grads, state.optimizer, state.params, value=mean_loss, active=active
    )
    was_synced = synced(state.optimizer, optimizer)
    state = TrainState(
      step=state.step + 1,
      params=consensus,
      optimizer=optimizer,
      syncs={name: count + was_synced[name] for name, count in state.syncs.items()},
    )
    metrics = {
      'loss': mean_loss,
      'model': about_model,
      'grad_norm': optax.tree.norm(grads),
      'drift': optimizer.drift,
      'health': optimizer.health._asdict() if judged(optimizer.health) else {},
      'learning_rate': schedule(state.step - 1),
      'syncs': state.syncs,
      'counters': optimizer.counters,
      'in_flight': dict(optimizer.flight.left),
    }
    return state, metrics

  def step(state: TrainState, tokens: jax.Array, active: jax.Array | None = None):
    run = over_workers(worker_step, mesh, (STATE_AXES, 0, None), (STATE_AXES, METRIC_AXES))
    return run(state, tokens, active)

  return step


def accumulate(
  loss: LossFunction, params: optax.Params, tokens: jax.Array
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], optax.Updates]:
  """Returns what `loss` does and its gradient, means over [micro-batches, sequences, seq_len + 1]."""
  value_and_grad = jax.value_and_grad(loss, has_aux=True)
  if tokens.shape[0] == 1:
    return value_and_grad(params, tokens[0])

  def add(total, micro_batch):
    return optax.tree.add(total, value_and_grad(params, micro_batch)), None

  values = jax.tree.map(jnp.zeros_like, jax.eval_shape(loss, params, tokens[0]))
  zeros = (values, optax.tree.zeros_like(params))
  total, _ = jax.lax.scan(add, zeros, tokens)
  return optax.tree.scale(1 / tokens.shape[0], total)


def make_eval_step(
  sequence_losses: Callable[[optax.Params, jax.Array], jax.Array], mesh: Mesh
) -> Callable:
  """Returns `evaluate(params, tokens) -> float32 [workers, batch]`: the loss of each sequence.

  Args:
    sequence_losses: nats per token of each sequence: (params, [batch, seq_len + 1]) -> [batch].
    mesh: from `mesh.make_mesh`.

  `tokens` are int32 [workers, batch, seq_len + 1].
  """

  def evaluate(params, tokens):
    return over_workers(sequence_losses, mesh, (None, 0), 0)(params, tokens)

  return jax.jit(evaluate, out_shardings=NamedSharding(mesh, P(WORKERS, FSDP)))


def local_mean(state: TrainState) -> optax.Params:
  """Returns the mean of the workers' own parameters: a model average over the slow links."""
  local = state.optimizer.params
  return state.params if local is None else jax.tree.map(lambda x: jnp.mean(x, axis=0), local)


@jax.jit
def finite_workers(state: TrainState) -> jax.Array:
  """Returns boolean [workers]: are all of a worker's own arrays, and the shared ones, finite?"""

  def all_finite(tree, keep_axes: int):
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    checks = [jnp.isfinite(x).all(axis=tuple(range(keep_axes, x.ndim))) for x in leaves]
    return functools.reduce(jnp.logical_and, checks, jnp.array(True))

  own = all_finite((state.optimizer.params, state.optimizer.inner), keep_axes=1)
  return jnp.atleast_1d(own & all_finite((state.params, state.optimizer.outer), keep_axes=0))
