"""Fragments: parts of the parameters, with their moments, that are averaged by themselves.

A model that is sent in one step is a burst. In P parts whose averages come K / P steps apart the
link carries a P-th of it each time, and with a delay a P-th of it is in flight. Parts may have
periods of their own, as an embedding or a router may want.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from desloc_jax.optimizer import state_fields
from desloc_jax.optimizer.sync_periods import check_periods, Period, Periods, Phased, Timetable

PATTERNS = ('strided', 'consecutive')
Tree = Any


class Rows(NamedTuple):
  """Which indices of an axis of an array."""

  axis: int
  start: int
  stop: int | None
  step: int

  @property
  def place(self) -> tuple[slice, ...]:
    """Where they are in the array."""
    return (*[slice(None)] * self.axis, slice(self.start, self.stop, self.step))


@dataclasses.dataclass(frozen=True)
class Fragment:
  """One part.

  Attributes:
    pieces: which rows of which parameters, by dotted path (`blocks.qkv.kernel`); None: the whole.
    periods: its own, by field, in place of those of all.
    phase: in [0, 1), by which share of a period its averages come early.
  """

  pieces: Mapping[str, Rows | None]
  periods: Periods = dataclasses.field(default_factory=dict)
  phase: float = 0.0


class Quantity(NamedTuple):
  """What is averaged by itself: a field ('params', or one of the inner state), or a part of it."""

  field: str
  period: Period
  fragment: str | None = None


def make_quantities(
  periods: Periods, fragments: Mapping[str, Fragment], coins: bool = False
) -> dict[str, Quantity]:
  """Returns what is averaged by itself, by name: a field, or 'FIELD-FRAGMENT'.

  Raises:
    ValueError: a fragment names a field that `periods` does not, or a period has no phase.
  """
  if not fragments:
    return {name: Quantity(name, period) for name, period in periods.items()}
  found = {}
  for part, fragment in fragments.items():
    if unknown := sorted(fragment.periods.keys() - periods.keys()):
      raise ValueError(
        f'the fragment {part} has a period of {unknown[0]}, which periods does not name; it names '
        f'{", ".join(periods)}.'
      )
    own = check_periods({**periods, **fragment.periods})
    for field, period in own.items():
      if isinstance(period, Timetable) or (callable(period) and not coins):
        raise ValueError(
          'fragments come at phases of their periods, which are to be numbers of steps; '
          f'that of {field} is {period!r:.60}.'
        )
      if isinstance(period, int) and not coins:
        period = Phased(period, round(period * fragment.phase))
      found[f'{field}-{part}'] = Quantity(field, period, part)
  return found


def cut(
  params: optax.Params,
  parts: int,
  pattern: str = 'strided',
  groups: Mapping[str, tuple[str, Periods]] | None = None,
) -> dict[str, Fragment]:
  """Cuts parameters into groups by path, and the rest into `parts` of the same size.

  Each array of the rest is cut along its first axis with so many rows, an array of layers by its
  layers. So each part has as much of each, but for what is too small to be cut.

  Args:
    params: arrays or shapes.
    parts: of what is in no group. They are called 0, 1, ..., and have their averages one after
      another, a P-th of a period apart.
    pattern: 'strided', every P-th row, or 'consecutive' ones. Streaming DiLoCo prefers the former.
    groups: (a regular expression of paths, periods of its own) by name.

  Raises:
    ValueError: a group has no array, two have the same one, or no array has so many rows.
  """
  arrays = state_fields.by_path(params)
  found: dict[str, Fragment] = {}
  group_of: dict[str, str] = {}
  for group, (paths, periods) in (groups or {}).items():
    pieces: dict[str, Rows | None] = {name: None for name in arrays if re.search(paths, name)}
    if not pieces:
      raise ValueError(f'{paths!r} of the group {group} is in none of {", ".join(arrays)}.')
    if twice := sorted(pieces.keys() & group_of.keys()):
      raise ValueError(f'{twice[0]} is in the groups {group_of[twice[0]]} and {group}.')
    group_of |= dict.fromkeys(pieces, group)
    found[group] = Fragment(pieces, periods)
  rest = {name: x for name, x in arrays.items() if name not in group_of}
  if not rest:
    return found
  axes = {name: _first_axis(jnp.shape(x), parts) for name, x in rest.items()}
  if all(axis is None for axis in axes.values()):
    most = max(max(jnp.shape(x), default=1) for x in rest.values())
    raise ValueError(f'{parts} parts are more than any array has rows; expected at most {most}.')
  for part in range(parts):
    pieces = {}
    for name, axis in axes.items():
      if axis is not None:
        pieces[name] = _rows(axis, jnp.shape(rest[name])[axis], part, parts, pattern)
      elif part == 0:
        pieces[name] = None
    found[str(part)] = Fragment(pieces, phase=1 - (part + 1) / parts)
  return found


def _first_axis(shape: tuple[int, ...], parts: int) -> int | None:
  return next((axis for axis, size in enumerate(shape) if size >= parts), None)


def _rows(axis: int, size: int, part: int, parts: int, pattern: str) -> Rows | None:
  if parts == 1:
    return None
  if pattern == 'strided':
    return Rows(axis, part, None, parts)
  return Rows(axis, size * part // parts, size * (part + 1) // parts, 1)


def check_fragments(fragments: Mapping[str, Fragment], params: optax.Params) -> None:
  """Raises ValueError unless each number of each parameter is in one fragment."""
  arrays = state_fields.by_path(params)
  for part, fragment in fragments.items():
    if unknown := sorted(fragment.pieces.keys() - arrays.keys()):
      raise ValueError(
        f'the fragment {part} has {unknown[0]}, which is no parameter; there are {", ".join(arrays)}.'
      )
  for name, x in arrays.items():
    pieces = [f.pieces[name] for f in fragments.values() if name in f.pieces]
    shape = jnp.shape(x)
    axes = {0 if rows is None else rows.axis for rows in pieces}
    times = np.zeros(shape[max(axes, default=0)] if shape else 1, int)
    for rows in pieces:
      times[slice(None) if rows is None else rows.place[-1]] += 1
    if len(axes) != 1 or (times != 1).any():
      raise ValueError(
        f'{name}, {shape}, is to be cut into fragments along one axis, each row in one of them; it '
        f'is cut into {pieces}.'
      )


def select(
  tree: Tree, params: optax.Params, field: str, fragment: Fragment, is_first: bool
) -> tuple[Tree, Callable[[Tree], Tree]]:
  """Returns the pieces of a fragment by path, and a function that puts others in their place.

  Args:
    tree: the parameters, or a state of the inner optimizer.
    params: the parameters.
    field: 'params' where `tree` is, else a field of that state.
    fragment: which part.
    is_first: whether it has what belongs to no parameter.
  """
  leaves, owners = jax.tree.leaves(tree), state_fields.owners(tree, params)
  labels = [field] * len(leaves) if field == 'params' else state_fields.label_fields(tree, params)
  shapes = {n: jnp.shape(x) for n, x in state_fields.by_path(params).items()}
  places: dict[int, Rows | None] = {}
  for i, (leaf, label, owner) in enumerate(zip(leaves, labels, owners, strict=True)):
    if label != field:
      continue
    if owner is None and is_first:
      places[i] = None
    elif owner is not None and owner in fragment.pieces:
      rows = fragment.pieces[owner]
      if rows is None or jnp.shape(leaf) == shapes[owner]:
        places[i] = rows
      elif rows.start == 0:  # Of another shape than the parameter: in one piece.
        places[i] = None
  whole, put_back_whole = state_fields.select_places(tree, list(places))
  cuts = dict(zip(whole, places.values(), strict=True))

  def put_back(part: Tree) -> Tree:
    return put_back_whole(OrderedDict((n, _put(whole[n], cuts[n], x)) for n, x in part.items()))

  return OrderedDict((n, _taken(x, cuts[n])) for n, x in whole.items()), put_back


def _taken(x: jax.Array, rows: Rows | None) -> jax.Array:
  return x if rows is None else x[rows.place]


def _put(x: jax.Array, rows: Rows | None, value: jax.Array) -> jax.Array:
  return value if rows is None else x.at[rows.place].set(value)
