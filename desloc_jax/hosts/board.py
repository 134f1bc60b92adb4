"""Notes that the processes of a run leave for each other while their devices are at work.

With others they go to the coordination service of `jax.distributed`, in process 0, over the host's
network. So a thread can write and read them whatever the main thread or the devices wait for, and no
step is burdened with an exchange.
"""

from typing import Any


class Board:
  """Notes by name, of a process alone.

  Attributes:
    count: how many processes there are.
    index: which of them this is, from 0.
  """

  def __init__(self, count: int = 1, index: int = 0):
    self.count, self.index = count, index
    self._notes: dict[str, str] = {}

  def post(self, name: str, text: str) -> None:
    """Leaves a note. Of several by one name the first one stays."""
    self._notes.setdefault(name, text)

  def read(self) -> dict[str, str]:
    """Returns all notes by name."""
    return dict(self._notes)


class SharedBoard(Board):
  """Notes that all processes see.

  While process 0 is gone a read or a write raises what JAX raises, or waits until JAX ends the
  process.
  """

  def __init__(self, count: int, index: int, number: int, client: Any):
    """Takes the number of this board, the same on all processes, and JAX's client."""
    super().__init__(count, index)
    self._folder, self._client = f'desloc_jax/{number}/', client

  def post(self, name: str, text: str) -> None:
    try:
      self._client.key_value_set(self._folder + name, text)
    except Exception as error:
      if 'ALREADY_EXISTS' not in str(error):
        raise

  def read(self) -> dict[str, str]:
    notes = self._client.key_value_dir_get(self._folder)
    return {key.removeprefix(self._folder): text for key, text in notes}
