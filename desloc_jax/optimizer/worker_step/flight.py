"""Syncs that land some steps after they were sent, and what is in flight between the two.

The seam where the exchange can leave the program: a quantity is *sent* (`exchange.agree`, a pure
function of the local value, the reference, the memory and the context of that step), *agreed* on,
and *lands* (`Landing.land`, pure too) when `left` has come to 0. In between the program needs
nothing but the arrays of `Flight`. So another program can compute `agree` of the same arguments, and
put its result into `flight.agreed` at any time before the landing: no bit changes. When it lands is
counted in steps and does not depend on the network.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.averaging import match_varying
from desloc_jax.optimizer.worker_step.frame import Frame

Tree = Any


class Flight(NamedTuple):
  """What was sent and has not landed, by quantity; without arrays where no sync has a delay."""

  sent: Any = ()  # The worker's own values, where the landing needs them.
  agreed: Any = ()  # The same on all workers.
  left: Any = ()  # int32 scalars: steps to the landing; 0: nothing is in flight.


# Where a Flight varies over workers, as a tree prefix for `jax.vmap`'s in_axes and out_axes.
FLIGHT_AXES = Flight(sent=0, agreed=None, left=None)


class Parcel(NamedTuple):
  """One quantity of a `Flight`."""

  sent: Tree
  agreed: Tree
  left: jax.Array


def init_flight(frame: Frame, trees: dict[str, Tree]) -> Flight:
  """Returns a flight with nothing in it for the quantities `trees` whose syncs have a delay.

  A place that fragments share has their arrays by path, each as large as the largest.
  """
  sent: dict[str, Tree] = {}
  agreed: dict[str, Tree] = {}
  left = {}
  for name, tree in trees.items():
    if not frame.sync_of(name).delay:
      continue
    place, zeros = frame.place_in_flight(name), optax.tree.zeros_like(tree)
    if place != name:
      known = agreed.get(place, {})
      zeros = known | {n: x for n, x in zeros.items() if n not in known or known[n].size < x.size}
    agreed[place], sent[place] = zeros, zeros if frame.keeps_sent(name) else ()
    left[name] = jnp.zeros([], jnp.int32)
  return Flight(sent, agreed, left)


def count_down(flight: Flight) -> tuple[Flight, dict[str, jax.Array]]:
  """Returns the flight one step later, and by quantity a boolean scalar: does it land now?"""
  left = {name: jnp.maximum(steps - 1, 0) for name, steps in flight.left.items()}
  return flight._replace(left=left), {name: steps == 1 for name, steps in flight.left.items()}


def parcel_of(frame: Frame, flight: Flight, name: str, like: Tree) -> Parcel:
  """Returns that of one quantity, whose arrays are `like`."""
  place = frame.place_in_flight(name)

  def taken(trees):
    if place == name or not trees[place]:
      return trees[place]
    return OrderedDict((n, trees[place][n][_corner(x)]) for n, x in like.items())

  return Parcel(taken(flight.sent), taken(flight.agreed), flight.left[name])


def with_parcel(frame: Frame, flight: Flight, name: str, parcel: Parcel) -> Flight:
  """Returns all of them, that of one quantity replaced."""
  place = frame.place_in_flight(name)
  if place == name:
    trees = zip(flight, parcel, strict=True)
    return Flight(*(part | {name: one} for part, one in trees))
  put = lambda trees, part: trees | {place: _in_corner(trees[place], part)}
  return Flight(
    put(flight.sent, parcel.sent),
    put(flight.agreed, parcel.agreed),
    flight.left | {name: parcel.left},
  )


def with_agreed(frame: Frame, flight: Flight, name: str, agreed: Tree) -> Flight:
  """Returns the flight with what was agreed on for one quantity."""
  place = frame.place_in_flight(name)
  whole = agreed if place == name else _in_corner(flight.agreed[place], agreed)
  return flight._replace(agreed=flight.agreed | {place: whole})


def _in_corner(whole: Tree, part: Tree) -> Tree:
  """Returns the arrays of a place, those of one part in their corner; () where it keeps none."""
  return whole | {n: whole[n].at[_corner(x)].set(x) for n, x in part.items()} if part else whole


def _corner(x: jax.Array) -> tuple[slice, ...]:
  """Returns which part of a larger array one of this shape takes."""
  return tuple(slice(0, size) for size in x.shape)


def put_up(parcel: Parcel, agreed: Tree, sent: Tree, left: jax.Array) -> Parcel:
  """Returns the parcel of what was just agreed on."""
  sent = match_varying(sent, parcel.sent) if jax.tree.leaves(parcel.sent) else ()
  return Parcel(sent, agreed, left)
