r"""Keeps the two moments of Adam together when only one of them is averaged.

Adam's raw moments u and v of the same gradients satisfy, in every coordinate and at every step,

.. math::
  |u| \le c \sqrt v, \quad c = \frac{1 - \beta_1}{\sqrt{(1 - \beta_2)(1 - \beta_1^2 / \beta_2)}},
  \quad \beta_1^2 < \beta_2

(Cauchy-Schwarz; a local step keeps it), and so do averages of both at the same step, as the root is
concave. An average of one alone does not. Where one worker has no gradient (an expert, a row of an
untied embedding) u becomes the mean of the others while v is still 0, and the step is u / eps.

So after an average of one alone, v becomes max(v, (u / c)^2). That is never above the larger of the
worker's own v and the mean over workers, sends nothing, and changes no bit where the bound holds.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent import futures
import functools
import math
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from desloc_jax.optimizer import state_fields

# Above what rounding can add to u, also in bfloat16: only a broken bound binds.
_SLACK = 1.01
_DIGITS = 6  # Of decays: float32 tells no more.
_GRADIENTS = (0.01, -0.03, 0.0, 0.0)  # Small, so that clipping leaves them as they are.


class Bound(NamedTuple):
  """Of one parameter's moments: places in the flattened inner state, and c."""

  first: int
  second: int
  c: float


Bounds = Mapping[tuple[str, str], list[Bound]]  # By the names of the two fields.


def hold(
  inner_state: optax.OptState,
  bounds: Bounds,
  dues: Sequence[Mapping[str, jax.Array]],
  kept: Collection[str] = (),
) -> optax.OptState:
  """Returns the state with second moments raised where the first or the second alone is due.

  Args:
    inner_state: after the averages.
    bounds: from `find_bounds`.
    dues: boolean scalars, by field: averaged at this step. Of each part that is averaged by itself.
    kept: fields whose averages come beside what was done since: two of them need not fit either.
  """
  leaves, structure = jax.tree.flatten(inner_state)
  never = jnp.zeros([], bool)
  for (first, second), of_leaves in bounds.items():
    fits = {first, second}.isdisjoint(kept)
    alone = never
    for due in dues:
      one, other = due.get(first, never), due.get(second, never)
      alone |= one != other if fits else one | other
    # In a conditional of its own: the averages compile as they would without it.
    raised = jax.lax.cond(
      alone,
      lambda u, v, of_leaves=of_leaves: [
        _raise(*pair, bound.c) for *pair, bound in zip(u, v, of_leaves, strict=True)
      ],
      lambda u, v: v,
      [leaves[bound.first] for bound in of_leaves],
      [leaves[bound.second] for bound in of_leaves],
    )
    for bound, leaf in zip(of_leaves, raised, strict=True):
      leaves[bound.second] = leaf
  return jax.tree.unflatten(structure, leaves)


def _raise(u: jax.Array, v: jax.Array, c: float) -> jax.Array:
  return jnp.maximum(v, jnp.square(jnp.abs(u) / c).astype(v.dtype))


def find_bounds(
  inner: optax.GradientTransformation,
  inner_state: optax.OptState,
  params: optax.Params,
  periods: Mapping[str, Any],
  independent: bool = False,
) -> Bounds:
  """Returns the bounds of the moments of `inner` that are averaged at other steps than each other.

  An optax transformation does not tell its decays, so they are read off a few updates of arrays of
  one element. Two fields count as moments of the same gradients only if all of these say so: ADOPT,
  for one, divides before the first moment and has no such bound.

  Warns where two fields have no constant bound although they are such moments: their decays change
  (a schedule, or injected hyperparameters), or b1^2 >= b2; and where nothing could be read.

  Args:
    inner: any optax transformation.
    inner_state: its state, as arrays or tracers.
    params: its parameters, likewise.
    periods: of the state fields, as `desloc` takes them.
    independent: fields with the same period are averaged at other steps too (coins).
  """
  labels = state_fields.label_fields(inner_state, params)
  pairs = {
    (i, j): (labels[i], labels[j])
    for i, j in _beside(inner_state, labels)
    if _apart(periods.get(labels[i]), periods.get(labels[j]), independent)
  }
  dimensions = tuple(jnp.ndim(x) for x in jax.tree.leaves(params))
  structures = jax.tree.structure(params), jax.tree.structure(inner_state)
  watched = _watch(inner, dimensions, *structures) if pairs else None
  bounds, unbounded = {}, set()
  for (i, j), names in pairs.items():
    if watched is None:
      unbounded.add((*sorted(names), 'updates of small arrays fail'))
      continue
    decays, later = (_decays(moments[i], moments[j]) for moments in watched)
    if decays is None and later is None:  # Other things than Adam's moments.
      continue
    if decays != later:
      unbounded.add((*names, 'their decays change'))
    elif decays[0] ** 2 >= decays[1]:
      unbounded.add((*names, 'b1^2 >= b2'))
    else:
      b1, b2 = decays
      c = (1 - b1) / math.sqrt((1 - b2) * (1 - b1**2 / b2))
      bounds.setdefault(names, []).append(Bound(i, j, _SLACK * c))
  for first, second, reason in sorted(unbounded):
    warnings.warn(
      f'{first} and {second} are averaged at different steps and not kept together: {reason}. Where '
      'one worker alone has a gradient steps may explode; equal periods avoid it.',
      stacklevel=2,
    )
  return bounds


def _apart(first, second, independent: bool) -> bool:
  """Whether one of two fields with these periods can be averaged without the other."""
  return (first is not None or second is not None) and (independent or first != second)


def _beside(state: optax.OptState, labels: list[str | None]) -> Iterator[tuple[int, int]]:
  """Yields the places of two fields of one container and parameter, in both orders."""
  beside = {}
  for place, (path, _) in enumerate(jax.tree.leaves_with_path(state)):
    if labels[place] is not None:
      for i in range(len(path)):  # But for one key, the field's, their paths are the same.
        beside.setdefault((path[:i], path[i + 1 :]), []).append(place)
  for places in beside.values():
    yield from ((i, j) for i in places for j in places if labels[i] != labels[j])


@functools.lru_cache(maxsize=32)  # A step is traced several times.
def _watch(
  inner: optax.GradientTransformation,
  dimensions: tuple[int, ...],
  structure: jax.tree_util.PyTreeDef,
  state_structure: jax.tree_util.PyTreeDef,
) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
  """Returns [updates] of each leaf of the state, from its start and as if it were much later.

  None if that cannot be tried: it fails, or with small arrays the state has another structure.
  """
  # Parameters of zero: decay that is added to gradients adds nothing.
  tiny = jax.tree.unflatten(structure, [np.zeros((1,) * n, np.float32) for n in dimensions])

  def moments(later: bool):
    state, seen = inner.init(tiny), []
    if later:
      state = jax.tree.map(_much_later, state)
    for size in _GRADIENTS:
      gradients = jax.tree.map(lambda x: jnp.full_like(x, size), tiny)  # noqa: B023
      _, state = inner.update(gradients, state, tiny)
      seen.append(state)
    if jax.tree.structure(state) != state_structure:
      raise ValueError('the state of small arrays has another structure.')
    return [jax.tree.leaves(state) for state in seen]

  try:
    # In a thread of its own there is no mesh, no axis and no tracing around it.
    with futures.ThreadPoolExecutor(1) as thread:
      both = thread.submit(jax.jit(lambda: [moments(later) for later in (False, True)])).result()
  except Exception:  # Of any kind: it is others' code, with arrays that it was not made for.
    return None
  return tuple(
    [np.stack(leaf) for leaf in zip(*seen, strict=True)] for seen in jax.device_get(both)
  )


def _much_later(leaf: jax.Array) -> jax.Array:
  """Returns other step counts and other injected hyperparameters."""
  if jnp.ndim(leaf) or leaf.dtype == bool:
    return leaf
  return leaf + 1000 if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf * 0.5


def _decays(first: np.ndarray, second: np.ndarray) -> tuple[float, float] | None:
  """Returns b1 and b2 if these are moving averages of g and of g^2 for the same g, else None.

  Args:
    first: [4, ...], after gradients of the signs +, - and twice zero, from zero.
    second: [4, ...], likewise.
  """
  if second.dtype != np.float32 or first.shape != second.shape:
    return None
  tolerance = 1e-4 if first.dtype == np.float32 else 5e-3
  u, v = (x.astype(np.float64).reshape(len(x), -1)[:, 0] for x in (first, second))
  if not (np.all(np.isfinite(u)) and np.all(np.isfinite(v)) and u[0] > 0 and np.all(v > 0)):
    return None
  # Rounded, so that every device finds the same.
  b2 = round(float(v[3] / v[2]), _DIGITS)
  powers = (v - b2 * np.append(0, v[:-1])) / (1 - b2) if 0 < b2 < 1 else None
  if powers is None or np.any(powers[:2] <= 0):
    return None
  g = np.sqrt(powers[:2]) * (1, -1)  # What remains of the gradients after clipping and scaling.
  b1 = round(float(1 - u[0] / g[0]), _DIGITS)
  predicted = b1 * u[:3] + (1 - b1) * np.append(g[1], (0, 0))
  agrees = np.allclose(predicted, u[1:], rtol=tolerance, atol=0)
  decays_only = np.allclose(powers[2:], 0, atol=tolerance * powers[0])
  return (b1, b2) if 0 < b1 < 1 and agrees and decays_only else None
