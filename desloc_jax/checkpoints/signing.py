"""Saving arrays so that each process signs the files that it wrote, while its machine has them."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib

from etils import epath
import orbax.checkpoint as ocp

from desloc_jax.checkpoints import checksums
from desloc_jax.hosts.peers import peers


class SigningHandler(ocp.PyTreeCheckpointHandler):
  """Saves as orbax does; a process has written when it has noted its files (`checksums.note`)."""

  async def async_save(self, directory: epath.Path, args: 'SigningSave') -> list['_Then']:
    written = await super().async_save(directory, args=args)
    folder, index = pathlib.Path(directory), peers().index
    part = folder.name.removesuffix(ocp.utils.TMP_DIR_SUFFIX)
    own = folder / f'ocdbt.process_{index}'
    return [_Then(written or (), lambda: checksums.note(folder.parent, index, part, own))]


@ocp.args.register_with_handler(SigningHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class SigningSave(ocp.args.PyTreeSave):
  """What a `SigningHandler` saves."""


class _Then:
  """A future of orbax: waits for others, and then does something more."""

  def __init__(self, others: Sequence[ocp.future.Future], act: Callable[[], None]):
    self._others, self._act = others, act

  def result(self, timeout: float | None = None) -> None:
    for other in self._others:
      other.result(timeout)
    self._act()
