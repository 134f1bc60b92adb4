"""Loss of the consensus model, and of the mean of the local models, on the held-out sequences."""

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from desloc_jax.train import exchange, mesh as mesh_lib
from desloc_jax.train.in_flight import InFlight
from desloc_jax.train.job import Job
from desloc_jax.train.step import local_mean, TrainState


class Evaluator:
  """Evaluates on the same sequences each time; they stay on the devices."""

  def __init__(self, job: Job, arrived: Callable[[], None] = lambda: None):
    """Calls `arrived` each time that the result of a batch has been waited for."""
    sharding = NamedSharding(job.mesh, P(mesh_lib.WORKERS, mesh_lib.FSDP))
    self._job, self._arrived = job, arrived
    batches = list(job.data.validation_batches)  # Each pass over them reads and tokenises again.
    self._sequences = sum(float(mask.sum()) for _, mask in batches)
    self._batches = [tuple(exchange.place(array, sharding) for array in batch) for batch in batches]
    params = jax.tree.map(lambda x: x.sharding, job.state_like.params)
    self._local_mean = jax.jit(local_mean, out_shardings=params)

  def __call__(self, state: TrainState) -> dict[str, float]:
    """Returns `val_loss` and, between parameter syncs, `val_loss_local_mean`: nats per token."""
    results = {'val_loss': self._loss(state.params)}
    between_syncs = state.optimizer.params is not None and int(
      state.optimizer.counters.get('params', 1)
    )
    if between_syncs and self._job.config.eval.local_mean:
      results['val_loss_local_mean'] = self._loss(self._local_mean(state))
    return results

  def _loss(self, params) -> float:
    in_flight = InFlight(self._arrived)
    sums = [
      in_flight.add(self._job.eval_step(params, tokens, mask)) for tokens, mask in self._batches
    ]
    # Of several processes each has the sums of its own workers: one exchange adds them up.
    return float(np.sum(exchange.fetch(sums), dtype=np.float64)) / self._sequences
