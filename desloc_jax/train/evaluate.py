"""Loss of the consensus model, and of the mean of the local models, on the held-out sequences."""

from collections.abc import Callable

from jax.sharding import NamedSharding, PartitionSpec as P

from desloc_jax.checkpoints.train_state import TrainState
from desloc_jax.hosts.peers import peers
from desloc_jax.optimizer.worker_step.frame import CONSENSUS
from desloc_jax.train.job import Job
from desloc_jax.train.setup import mesh as mesh_lib
from desloc_jax.train.speed.in_flight import InFlight


class Evaluator:
  """Evaluates on the same sequences each time; they stay on the devices."""

  def __init__(self, job: Job, arrived: Callable[[], None] = lambda: None):
    """Calls `arrived` each time that the result of a batch has been waited for."""
    program = job.program
    sharding = NamedSharding(program.mesh, P(mesh_lib.WORKERS, mesh_lib.FSDP))
    self._job, self._arrived = job, arrived
    batches = job.data.held_out.batches(program.batch.workers, program.batch.sequences)
    self._batches = [mesh_lib.place(tokens, sharding) for tokens in batches]

  def __call__(self, state: TrainState) -> dict[str, float]:
    """Returns the losses in nats per token.

    `val_loss` is that of the mixture and `val_loss/NAME` that of each source, where there are
    several; `val_loss_local_mean` is of the mixture, and there between parameter syncs.
    """
    held_out = self._job.data.held_out
    losses = self._losses(state.params)
    results = {'val_loss': held_out.of_mixture(losses)}
    if len(losses) > 1:
      results |= {f'val_loss/{name}': loss for name, loss in losses.items()}
    # Parameters that land beside what was done since never are the consensus.
    counters = state.optimizer.counters
    since = counters.get(CONSENSUS, counters.get('params', 1))
    between_syncs = state.optimizer.params is not None and (
      state.optimizer.flight.left or int(since)
    )
    if between_syncs and self._job.config.eval.local_mean:
      losses = self._losses(self._job.program.local_mean(state))
      results['val_loss_local_mean'] = held_out.of_mixture(losses)
    return results

  def _losses(self, params) -> dict[str, float]:
    in_flight = InFlight(self._arrived)
    evaluate = self._job.program.eval_step
    losses = [in_flight.add(evaluate(params, tokens)) for tokens in self._batches]
    # Of several processes each has those of its own workers: one exchange brings them together.
    return self._job.data.held_out.by_source(peers().fetch(losses))
