"""What a device holds at once, from the shapes of the state that the trainer makes."""

import jax
import optax

from desloc_jax.model import activation_bytes, GPTConfig
from desloc_jax.options.batch import Batch


def memory_bytes(
  model: GPTConfig,
  params_like: optax.Params,
  tx: optax.GradientTransformation,
  batch: Batch,
  devices: int,
) -> dict[str, float]:
  """Returns bytes a device by what they are for, everything of a worker split evenly.

  The state is exact but for leaves too small to split. Gradients are one tree like the parameters,
  and with several micro-batches two: their sum, and the one that is added. Activations are an
  estimate, see `activation_bytes`. Besides, `weights in use`: a device's own ones in the compute
  dtype, to which XLA casts them once a step; one block and an embedding, whole, as they are
  gathered from the other devices; and with several devices an embedding's gradient, whole and in
  float32, before it is summed over them.

  Args:
    model: whose `seq_len` is that of the training sequences.
    params_like: shapes of its parameters.
    tx: the method's transformation.
    batch: of a step.
    devices: that share a worker.
  """
  state = jax.eval_shape(tx.init, params_like)
  parameters = tree_bytes(params_like)
  own = tree_bytes(state.params)
  block = tree_bytes(params_like['blocks']) / model.layers
  embedding = tree_bytes(params_like['embedding'])
  cast = parameters / devices if model.dtype.itemsize < 4 else 0
  in_use = (cast + block + embedding) * model.dtype.itemsize / 4 + embedding * (devices > 1)
  remembered = {
    'memory of syncs': tree_bytes(state.memory.own) / devices,
    'shared memory of syncs': tree_bytes(state.memory.shared) / devices,
    'snapshots of syncs in flight': tree_bytes(state.flight.sent) / devices,
    'averages in flight': tree_bytes(state.flight.agreed) / devices,
  }
  return {
    'parameters': (own or parameters) / devices,
    'consensus copy': (parameters if own else 0) / devices,  # DDP has one model only.
    'moments': (tree_bytes(state.inner) + tree_bytes(state.outer)) / devices,
    'gradients': parameters * min(batch.micro_batches, 2) / devices,
    'activations': activation_bytes(model, batch.sequences / devices),
    'weights in use': in_use,
  } | {name: size for name, size in remembered.items() if size}  # Most have none.


def tree_bytes(tree) -> int:
  """Returns the bytes of the arrays or shapes in `tree`."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
