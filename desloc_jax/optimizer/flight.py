"""Syncs that land some steps after they were sent, and what is in flight between the two.

The seam where the exchange can leave the program: a quantity is *sent* (`exchange.agree`, a pure
function of the local value, the reference, the memory and the context of that step), *agreed* on,
and *lands* (`Landing.land`, pure too) when `left` has come to 0. In between the program needs
nothing but the arrays of `Flight`. So another program can compute `agree` of the same arguments, and
put its result into `flight.agreed` at any time before the landing: no bit changes. When it lands is
counted in steps and does not depend on the network.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from desloc_jax.optimizer.averaging import match_varying

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


def init_flight(frame, trees: dict[str, Tree]) -> Flight:
  """Returns a flight with nothing in it for `trees`, by quantity, whose syncs have a delay."""
  parcels = {}
  for name, tree in trees.items():
    if frame.sync_of(name).delay:
      zeros = optax.tree.zeros_like(tree)
      sent = zeros if frame.keeps_sent(name) else ()
      parcels[name] = Parcel(sent, zeros, jnp.zeros([], jnp.int32))
  return Flight(*({name: p[i] for name, p in parcels.items()} for i in range(3)))


def count_down(flight: Flight) -> tuple[Flight, dict[str, jax.Array]]:
  """Returns the flight one step later, and by quantity a boolean scalar: does it land now?"""
  left = {name: jnp.maximum(steps - 1, 0) for name, steps in flight.left.items()}
  return flight._replace(left=left), {name: steps == 1 for name, steps in flight.left.items()}


def parcel_of(flight: Flight, name: str) -> Parcel:
  """Returns that of one quantity."""
  return Parcel(*(part[name] for part in flight))


def with_parcel(flight: Flight, name: str, parcel: Parcel) -> Flight:
  """Returns all of them, that of one quantity replaced."""
  return Flight(*(part | {name: one} for part, one in zip(flight, parcel, strict=True)))


def put_up(parcel: Parcel, agreed: Tree, sent: Tree, left: jax.Array) -> Parcel:
  """Returns the parcel of what was just agreed on."""
  sent = match_varying(sent, parcel.sent) if jax.tree.leaves(parcel.sent) else ()
  return Parcel(sent, agreed, left)
