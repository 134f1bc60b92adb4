"""Notes that the processes of a run leave for each other while their devices are at work.

They go to the coordination service of `jax.distributed`, in process 0, over the host's network. So a
thread can write and read them whatever the main thread or the devices wait for, and no step is
burdened with an exchange.
"""

import itertools

from jax._src import distributed  # Its client has no public name.

from desloc_jax.hosts import processes

_numbers = itertools.count()


class Board:
  """Notes of one run, by name, that all of its processes see; of one process alone, a dictionary.

  All processes make their boards in the same order. While process 0 is gone a read or a write
  raises what JAX raises, or waits until JAX ends the process.

  Attributes:
    count: how many processes there are.
    index: which of them this is, from 0.
  """

  def __init__(self):
    self.count, self.index = processes.count(), processes.index()
    self._folder = f'desloc_jax/{next(_numbers)}/'
    self._client = distributed.global_state.client if processes.several() else None
    self._own: dict[str, str] = {}

  def post(self, name: str, text: str) -> None:
    """Leaves a note. Of several by one name the first one stays."""
    if self._client is None:
      self._own.setdefault(name, text)
      return
    try:
      self._client.key_value_set(self._folder + name, text)
    except Exception as error:
      if 'ALREADY_EXISTS' not in str(error):
        raise

  def read(self) -> dict[str, str]:
    """Returns all notes by name."""
    if self._client is None:
      return dict(self._own)
    notes = self._client.key_value_dir_get(self._folder)
    return {key.removeprefix(self._folder): text for key, text in notes}
