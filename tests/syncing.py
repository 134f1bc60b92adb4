"""Syncs over a vmapped axis, their inputs, and what they send, for several tests."""

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from desloc_jax.optimizer import syncs
from desloc_jax.optimizer.averaging import worker_share
from desloc_jax.optimizer.syncs import MEMORY_AXES

WORKERS, BLOCK = 5, 16
LIKE = {'b': jnp.zeros(7), 's': jnp.zeros(()), 'w': jnp.zeros((13, 11))}
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
