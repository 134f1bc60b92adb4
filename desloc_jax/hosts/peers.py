"""The processes of a run: what they tell each other, agree on, and how they end.

A process alone has the same object, with itself as the only answer, so that no caller asks whether
there are others. Few and small things are told: with others, each is an exchange over the links
between workers, which may be slow.
"""

from collections.abc import Callable
import json
import sys
from typing import Any, NoReturn, TypeVar

from desloc_jax.errors import UserError
from desloc_jax.hosts.board import Board

_SHOWN = 5  # Differences that an error lists.
Kinds = tuple[type[Exception], ...]
Result = TypeVar('Result')


class Peers:
  """A process alone. All processes of a run call the same methods in the same order.

  Attributes:
    count: how many processes there are.
    index: which of them this is, from 0.
  """

  count, index = 1, 0

  @property
  def is_first(self) -> bool:
    """Whether this is process 0, which decides, and alone writes the logs."""
    return self.index == 0

  def gather(self, value: Any) -> list[Any]:
    """Returns the values of all processes, of JSON types, by their index."""
    return list(map(json.loads, self._gather_texts(json.dumps(value))))

  def fetch(self, tree: Any) -> Any:
    """Returns a tree of arrays in NumPy, whole on every process."""
    import jax  # Parsing the command line needs none.

    return jax.device_get(tree)

  def wait_for_all(self) -> None:
    """Returns when all processes have called it."""

  def make_board(self) -> Board:
    """Returns a new board, on which all leave notes."""
    return Board()

  def lost_by(self, error: BaseException | None) -> bool:
    """Returns whether an error comes of another process that is gone."""
    del error
    return False

  def end(self, code: int, text: str) -> NoReturn:
    """Ends this process with a last line."""
    print(text, file=sys.stderr)
    sys.exit(code)

  def together(self, prepare: Callable[[], Result], also: Kinds = ()) -> Result:
    """Returns what `prepare` returns, once it has succeeded on every process.

    Raises:
      UserError: on every process, where it did on one of them; the kinds of `also` likewise.
    """
    kinds, result, own = (UserError, *also), None, None
    try:
      result = prepare()
    except kinds as error:
      own = error
    ends = self.gather([_number(own, kinds), str(own)])
    if own:
      raise own
    for process, (number, text) in enumerate(ends):
      if number is not None:
        raise kinds[number](f'process {process} cannot begin: {text}')
    return result

  def from_first(self, decide: Callable[[], Result], also: Kinds = ()) -> Result:
    """Returns what `decide` returns on process 0, of JSON types; it runs there alone.

    Raises:
      UserError: on every process, where it did on process 0; the kinds of `also` likewise.
    """
    kinds, result, own = (UserError, *also), None, None
    if self.is_first:
      try:
        result = decide()
      except kinds as error:
        own = error
    result, number, text = self.gather([result, _number(own, kinds), str(own)])[0]
    if own:
      raise own
    if number is not None:
      raise kinds[number](text)
    return result

  def on_first(self, act: Callable[[], Result]) -> Result | None:
    """Returns what `act` returns on process 0, where it runs alone; None on the others.

    Raises:
      UserError: on every process, where it did on process 0.
    """
    return self.together(lambda: act() if self.is_first else None)

  def compare(self, here: dict[str, object]) -> None:
    """Checks that values of JSON types, by name, are the same on all processes.

    Raises:
      UserError: on every process, the first of them that differ from those of process 0.
    """
    first, *others = self.gather(here)
    for process, values in enumerate(others, 1):
      differing = [
        f'{name} ({_shown(first, name)} and {_shown(values, name)})'
        for name in {**first, **values}
        if first.get(name) != values.get(name) or (name in first) != (name in values)
      ]
      if differing:
        more = f' and {len(differing) - _SHOWN} more' if len(differing) > _SHOWN else ''
        raise UserError(
          f'processes 0 and {process} do not run the same: {", ".join(differing[:_SHOWN])}{more}.'
        )

  def _gather_texts(self, text: str) -> list[str]:
    return [text]


def peers() -> Peers:
  """Returns the processes of the run that this process belongs to.

  It is one of a run once, if at all: JAX joins it to the others for good (`joining.join`).
  """
  return _peers


def set_peers(found: Peers) -> None:
  """Says which processes this one has joined."""
  global _peers
  _peers = found


_peers = Peers()


def _number(error: Exception | None, kinds: Kinds) -> int | None:
  return (
    None if error is None else next(i for i, kind in enumerate(kinds) if isinstance(error, kind))
  )


def _shown(values: dict[str, object], name: str) -> str:
  return f'{values[name]!r:.60}' if name in values else 'unset'
