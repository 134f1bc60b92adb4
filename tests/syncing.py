"""Syncs over a vmapped axis, their inputs, and what they send, for several tests."""

import jax
from jax.extend import core
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from desloc_jax.optimizer import syncs
from desloc_jax.optimizer.averaging import worker_share
from desloc_jax.optimizer.over_workers import AXIS_NAMES, over_workers
from desloc_jax.optimizer.syncs import MEMORY_AXES

WORKERS, BLOCK = 5, 16
LIKE = {'b': jnp.zeros(7), 's': jnp.zeros(()), 'w': jnp.zeros((13, 11))}
SIZE = 7 + 1 + 13 * 11
SHAPE = (WORKERS, SIZE)
WEIGHTS = np.array([1.0, 0.0, 2.0, 1.0, 0.5])
MANY = 8
TREE = {
  'embed': jnp.zeros((16, 12)), 'bias': jnp.zeros(7), 'scalar': jnp.zeros(()),
  'half': jnp.zeros((5, 3), jnp.bfloat16), 'empty': jnp.zeros((0, 3)),
}  # fmt: skip
EVERY = {
  'int8': syncs.quantised(8, BLOCK),
  'int4': syncs.quantised(4, BLOCK),
  'topk': syncs.topk(3, BLOCK),
  'ef21': syncs.ef21(syncs.in_slices(syncs.four_levels(BLOCK))),
  'econtrol': syncs.econtrol(syncs.to_everybody(syncs.largest(3, BLOCK))),
  'exempt': syncs.exempt(syncs.quantised(8, BLOCK), 'bias|scalar'),
  'anchored': syncs.anchored(syncs.topk(3, BLOCK)),
}


def make_reduce(sync, weights=None, axis_name='workers'):
  """Returns (local [workers, ...], reference, memory) -> (agreed, memory) over a vmapped axis."""

  def of_worker(local, shared, memory):
    share = None if weights is None else worker_share(axis_name, jnp.asarray(weights), None)
    return sync.reduce(local, shared, memory, syncs.Context(axis_name, share, jnp.int32(0)))

  axes = (0, None, MEMORY_AXES), (None, MEMORY_AXES)
  return jax.jit(jax.vmap(of_worker, in_axes=axes[0], out_axes=axes[1], axis_name=axis_name))


def init(sync, like=LIKE, workers=WORKERS):
  return jax.vmap(lambda: sync.init(like), axis_size=workers, out_axes=MEMORY_AXES)()


def bits_of(tree):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def random_locals(seed=0, like=LIKE, workers=WORKERS):
  rng = np.random.default_rng(seed)
  draw = lambda x: jnp.asarray(rng.normal(size=(workers, *x.shape)), x.dtype)
  return jax.tree.map(draw, like)


def sent_bytes(sync, like, workers=4):
  """Returns {primitive: bytes of its operands}, of one worker."""
  totals = {}

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      axes = eqn.params.get('axes', eqn.params.get('axis_name', ()))
      axes = axes if isinstance(axes, tuple) else (axes,)
      if 'workers' in axes and eqn.primitive.name != 'axis_index':
        size = sum(v.aval.size * v.aval.dtype.itemsize for v in eqn.invars)
        totals[eqn.primitive.name] = totals.get(eqn.primitive.name, 0) + size
      for inner in core.jaxprs_in_params(eqn.params):
        walk(inner)

  def reduce(local, shared):
    return sync.reduce(
      local, shared, sync.init(local), syncs.Context('workers', None, jnp.int32(0))
    )

  walk(jax.make_jaxpr(reduce, axis_env=[('workers', workers)])(like, like).jaxpr)
  return totals


def to_tree(vectors):
  """[..., n] -> arrays of the shapes of `LIKE`, in the order of its leaves."""
  sizes = [leaf.size for leaf in jax.tree.leaves(LIKE)]
  parts = np.split(np.asarray(vectors), np.cumsum(sizes)[:-1], axis=-1)
  leaves = [
    jnp.asarray(p.reshape((*p.shape[:-1], *x.shape)))
    for p, x in zip(parts, jax.tree.leaves(LIKE), strict=True)
  ]
  return jax.tree.unflatten(jax.tree.structure(LIKE), leaves)


def to_vectors(tree, lead=0):
  return np.concatenate(
    [np.asarray(x).reshape(*x.shape[:lead], -1) for x in jax.tree.leaves(tree)], axis=-1
  )


def relative_error(x, expected):
  """Scales are sent in float32: where a float64 sum is rounded otherwise, they differ by its last bit."""
  return np.linalg.norm(x - expected) / np.linalg.norm(expected)


def on_devices(sync, rows, fsdp, local, shared, weights=None, like=TREE):
  devices = np.array(jax.devices()[: rows * fsdp]).reshape(rows, fsdp)
  mesh = Mesh(devices, ('workers', 'fsdp'), axis_types=(AxisType.Auto,) * 2)

  def of_worker(local, shared, memory):
    share = None if weights is None else worker_share(AXIS_NAMES, weights, None)
    return jax.lax.cond(
      True, lambda *args: sync.reduce(*args, syncs.Context(AXIS_NAMES, share, jnp.int32(0))),
      lambda local, shared, memory: (shared, memory), local, shared, memory,
    )  # fmt: skip

  step = jax.jit(over_workers(of_worker, mesh, (0, None, MEMORY_AXES), (None, MEMORY_AXES)))
  place = lambda x: jax.device_put(
    x, NamedSharding(mesh, P('workers', None, 'fsdp') if x.shape[1:] == (16, 12) else P('workers'))
  )
  memory = init(sync, like, MANY)
  return step(jax.tree.map(place, local), shared, memory)
