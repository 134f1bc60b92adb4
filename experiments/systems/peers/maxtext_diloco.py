"""MaxText's DiLoCo module (on DrJAX), around the model of the tasks in Flax NNX.

  python -m experiments.systems.peers.maxtext_diloco toy TOKENS.npy

A CPU device for each worker, as their mesh has it.
"""

from importlib import metadata
import time
import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.systems.peers import task as tasks


class Block(nnx.Module):
  """Attention and an MLP, each behind a norm."""

  def __init__(self, task: tasks.Task, rngs: nnx.Rngs):
    width, self.heads = task.width, task.heads
    into_residual = tasks.INIT_STDDEV * (2 * task.layers) ** -0.5

    def linear(n_in, n_out, stddev=tasks.INIT_STDDEV):
      init = nnx.initializers.normal(stddev)
      return nnx.Linear(n_in, n_out, use_bias=False, kernel_init=init, rngs=rngs)

    norm = lambda: nnx.RMSNorm(width, epsilon=tasks.NORM_EPS, rngs=rngs)
    self.attention_norm, self.mlp_norm = norm(), norm()
    self.qkv = linear(width, 3 * width)
    self.attention_out = linear(width, width, into_residual)
    self.mlp_up = linear(width, 4 * width)
    self.mlp_down = linear(4 * width, width, into_residual)

  def __call__(self, x, cos, sin):
    batch, length, width = x.shape
    qkv = self.qkv(self.attention_norm(x)).reshape(batch, length, 3, self.heads, -1)
    q, k, v = jnp.moveaxis(qkv, 2, 0)

    def turn(heads):
      first, second = jnp.split(heads, 2, axis=-1)
      return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    out = jax.nn.dot_product_attention(turn(q), turn(k), v, is_causal=True)
    x = x + self.attention_out(out.reshape(batch, length, width))
    return x + self.mlp_down(jax.nn.silu(self.mlp_up(self.mlp_norm(x))))


class GPT(nnx.Module):
  """Tokens [batch, seq_len + 1] to the mean loss of the next ones."""

  def __init__(self, task: tasks.Task, rngs: nnx.Rngs):
    init = nnx.initializers.normal(tasks.INIT_STDDEV)
    self.embedding = nnx.Embed(tasks.VOCABULARY, task.width, embedding_init=init, rngs=rngs)
    self.blocks = nnx.List([Block(task, rngs) for _ in range(task.layers)])
    self.final_norm = nnx.RMSNorm(task.width, epsilon=tasks.NORM_EPS, rngs=rngs)
    self.head_size = task.width // task.heads

  def __call__(self, tokens):
    length, size = tokens.shape[1] - 1, self.head_size
    frequencies = tasks.ROPE_BASE ** (-jnp.arange(0, size, 2) / size)
    angles = (jnp.arange(length)[:, None] * frequencies)[:, None, :]
    x = self.embedding(tokens[:, :-1])
    for block in self.blocks:
      x = block(x, jnp.cos(angles), jnp.sin(angles))
    scores = self.embedding.attend(self.final_norm(x))
    return optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:]).mean()


def main() -> None:
  task, tokens = tasks.arguments()
  jax.config.update('jax_num_cpu_devices', task.workers)
  # After the number of devices: it asks for them.
  from maxtext.common.train_state_nnx import TrainStateNNX
  from maxtext.trainers.diloco import diloco

  mesh = jax.make_mesh((task.workers,), ('diloco',), axis_types=(jax.sharding.AxisType.Auto,))
  config = types.SimpleNamespace(
    num_diloco_replicas=task.workers,
    diloco_sync_period=task.period,
    diloco_outer_lr=tasks.OUTER_LEARNING_RATE,
    diloco_outer_momentum=tasks.OUTER_MOMENTUM,
    enable_streaming_diloco=False,
  )
  inner = optax.adamw(
    tasks.LEARNING_RATE,
    tasks.B1,
    tasks.B2,
    tasks.EPS,
    weight_decay=tasks.WEIGHT_DECAY,
    mask=lambda params: jax.tree.map(lambda p: p.ndim == 2, params),
  )
  model = GPT(task, nnx.Rngs(0))
  structure, state = nnx.split(TrainStateNNX(model, nnx.Optimizer(model, inner, wrt=nnx.Param)))

  def train_step(state, batch, key):
    del key  # Nothing is drawn.
    train = nnx.merge(structure, state)
    loss, grads = nnx.value_and_grad(lambda model: model(batch))(train.model)
    train.apply_gradients(grads)
    return nnx.state(train), {'scalar': {'learning/loss': loss}}

  step = jax.jit(diloco.build_diloco_train_step(config, train_step, mesh), donate_argnums=0)
  batches = tokens.astype(np.int32)
  with jax.set_mesh(mesh):
    state, _ = diloco.build_diloco_state(config, lambda: state, mesh)
    state = state.replace(step=jnp.asarray(*jax.tree.leaves(state.step)))  # As steps leave it.
    start = time.perf_counter()
    compiled = step.lower(state, batches[0], None).compile()
    compile_s = time.perf_counter() - start

    def steps(first: int, count: int) -> float:
      nonlocal state
      for i in range(first, first + count):
        state, metrics = compiled(state, batches[i % len(batches)], None)
      jax.block_until_ready(state)
      return float(jnp.mean(metrics['scalar']['learning/loss']))

    payload = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    packages = ('maxtext', 'drjax', 'flax', 'jax')
    versions = ', '.join(f'{name} {metadata.version(name)}' for name in packages)
    tasks.serve({'versions': versions, 'compile_s': compile_s, 'payload_bytes': payload}, steps)


if __name__ == '__main__':
  main()
