"""Workers that lie: attacks on what they send, for experiments with robust averages."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from desloc_jax.optimizer.averaging import at_least_float32, from_one, Share, worker_mean
from desloc_jax.optimizer.syncs.compressed.channels import gathered
from desloc_jax.optimizer.syncs.sync import Context, difference, moved, Sync, Tree


class Scene(NamedTuple):
  """What those who lie know: everything."""

  axis_name: object
  honest: Share  # How much this worker counts among the honest ones.
  first: jax.Array  # Boolean scalar: this is the first honest worker.
  key: jax.Array  # Of this sync and worker.


class Attack(NamedTuple):
  """One way to lie: (D of this worker, its strength, the scene) -> what it says that D was."""

  lie: Callable[[Tree, float, Scene], Tree]
  strength: float | None  # The usual one; None: it has none.


def _flip(news, strength, scene):
  return jax.tree.map(jnp.negative, news)


def _scale(news, strength, scene):
  return jax.tree.map(lambda d: strength * d, news)


def _noise(news, strength, scene):
  leaves, structure = jax.tree.flatten(news)
  size = sum(d.size for d in leaves)
  rms = optax.tree.norm(at_least_float32(news)) / np.sqrt(max(1, size))
  keys = jax.random.split(scene.key, max(1, len(leaves)))
  noise = [jax.random.normal(k, d.shape, d.dtype) for k, d in zip(keys, leaves, strict=False)]
  return structure.unflatten(
    [d + (strength * rms).astype(d.dtype) * n for d, n in zip(leaves, noise, strict=True)]
  )


def _mimic(news, strength, scene):
  return from_one(news, scene.axis_name, scene.first)


def _alie(news, strength, scene):
  mean = worker_mean(news, scene.axis_name, scene.honest)
  squares = jax.tree.map(lambda d, m: (d - m) ** 2, news, mean)
  variance = worker_mean(squares, scene.axis_name, scene.honest)
  return jax.tree.map(lambda m, v: m - strength * jnp.sqrt(v), mean, variance)


ATTACKS = {
  'flip': Attack(_flip, None),
  'scale': Attack(_scale, 10.0),
  'noise': Attack(_noise, 10.0),
  'mimic': Attack(_mimic, None),
  'alie': Attack(_alie, 1.5),
}


def attacked(sync: Sync, plan: Mapping[int, tuple[str, float | None]], seed: int = 0) -> Sync:
  r"""Lets some workers send something else than what they have; their own state stays true.

  With :math:`D_m = X - x_m`, or the value of a quantity without a reference, and the mean and
  deviation :math:`\mu, \sigma` of each coordinate over the honest workers, worker m sends

  .. math::
    \text{flip: } -D_m, \quad \text{scale: } a D_m, \quad
    \text{noise: } D_m + a \, \mathrm{rms}(D_m) \, \mathcal N(0, 1), \quad
    \text{mimic: } D_h, \quad \text{alie: } \mu - a \sigma

  h being the first honest worker. What mimic and alie need to know of the others is sent between
  workers too, and in the bytes of the sync.

  Args:
    sync: what they send it by.
    plan: for each worker that lies an attack and its strength a, None: the usual one.
    seed: of the noise.

  Returns:
    A `Sync` with the memory of `sync`.

  References:
    Baruch et al., `A Little Is Enough <https://arxiv.org/abs/1902.06156>`_, 2019; Karimireddy et
    al., `Byzantine-Robust Learning on Heterogeneous Datasets <https://arxiv.org/abs/2006.09365>`_,
    2020 (mimic)
  """
  groups: dict[tuple[str, float | None], list[int]] = {}
  for worker, attack in plan.items():
    groups.setdefault(attack, []).append(worker)

  def reduce(local, reference, memory, context: Context):
    news = difference(local, reference)
    place, scene = jax.lax.axis_index(context.axis_name), look_around(context)
    said = news
    for (name, strength), workers in groups.items():
      attack = ATTACKS[name]
      lies = (place == jnp.asarray(workers)).any()
      told = attack.lie(news, attack.strength if strength is None else strength, scene)
      said = jax.tree.map(lambda lie, d, lies=lies: jnp.where(lies, lie, d), told, said)
    # Who does not lie sends its own bits.
    liar = (place == jnp.asarray(list(plan))).any()
    sent = moved(local, reference, said)
    sent = jax.tree.map(lambda lie, x: jnp.where(liar, lie, x), sent, local)
    return sync.reduce(sent, reference, memory, context)

  def look_around(context: Context) -> Scene:
    weight = jnp.ones([]) if context.share is None else context.share.weight
    place = jax.lax.axis_index(context.axis_name)
    liar = (place == jnp.asarray(list(plan))).any()
    own = jnp.where(liar, 0, weight)
    of_all = gathered(own, context.axis_name)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), context.round), place)
    return Scene(context.axis_name, Share(own, of_all.sum()), place == jnp.argmax(of_all > 0), key)

  return sync._replace(reduce=reduce)
