"""How an agreed value takes the place of a local one that has moved on since it was sent.

y is the local value when it was sent, z the one now, a what was agreed on (of the parameters: the
consensus that the outer optimizer makes of it).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any
LANDINGS = ('overwrite', 'keep', 'mix', 'eager')


class Landing(NamedTuple):
  """A rule. It is elementwise and sends nothing.

  Attributes:
    land: (z, a, y) -> the local value.
    needs_sent: whether y is kept until then: a copy of the quantity. Where nothing is between the
      two, as there is no delay, such a rule is `OVERWRITE`.
    eager: whether a worker takes its own share of the average when it sends, and y is that.
  """

  land: Callable[[Tree, Tree, Tree], Tree]
  needs_sent: bool = False
  eager: bool = False


OVERWRITE = Landing(lambda now, agreed, sent: agreed)


def keep(positive: bool = False) -> Landing:
  r"""Keeps what a worker did since it sent.

  .. math::
    x \leftarrow a + (z - y)

  Args:
    positive: whether the quantity is never negative, as a second moment: it then lands at no less
      than the smaller of a and z. Where y is much larger than a, its decay since then would
      otherwise take off more than there is.

  References:
    LOSCAR; CO2 (arXiv:2401.16265), whose released code overwrites.
  """

  def land(now, agreed, sent):
    kept = agreed + (now - sent)
    return jnp.maximum(kept, jnp.minimum(agreed, now)) if positive else kept

  return Landing(lambda *trees: jax.tree.map(land, *trees), needs_sent=True)


def mix(local_share: float) -> Landing:
  r"""Mixes the two; alpha weighs the local value.

  .. math::
    x \leftarrow \alpha z + (1 - \alpha) a

  References:
    Douillard et al., `Streaming DiLoCo <https://arxiv.org/abs/2501.18512>`_, 2025

  Raises:
    ValueError: alpha is not in [0, 1).
  """
  if not 0 <= local_share < 1:
    raise ValueError(f'the local share must be in [0, 1), got {local_share!r}.')
  if local_share == 0:
    return OVERWRITE
  land = lambda z, a: local_share * z + (1 - local_share) * a
  return Landing(lambda now, agreed, sent: jax.tree.map(land, now, agreed))


def eager() -> Landing:
  r"""Of the parameters: a worker's own share of the average is applied when it is sent.

  With D = X - x the worker goes on from the outer step of its share D_m / W, and keeps what it does
  from there on when the average lands. A sync that lands where the next one is sent moves it by

  .. math::
    \tilde D_m = D^{old} + (D_m - D_m^{old}) / W

  in all, as the paper has it. With momentum outside, a worker's share makes a step of that too,
  which the landing takes back.

  References:
    Kale, Douillard, Donchev: `Eager Updates for Overlapped Communication and Computation in DiLoCo
    <https://arxiv.org/abs/2502.12996>`_, 2025
  """
  return keep()._replace(eager=True)


def make_landing(name: str, local_share: float = 0.0, positive: bool = False) -> Landing:
  """Returns a rule by name.

  Args:
    name: one of `LANDINGS`.
    local_share: of mix.
    positive: whether the quantity is never negative.

  Raises:
    ValueError: there is no such rule, or the share is out of range.
  """
  if name == 'overwrite':
    return OVERWRITE
  if name == 'mix':
    return mix(local_share)
  if name == 'keep':
    return keep(positive)
  if name == 'eager':
    return eager()
  raise ValueError(f'there is no landing {name!r}; expected one of {", ".join(LANDINGS)}.')
