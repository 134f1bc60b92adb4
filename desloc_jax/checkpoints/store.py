"""Checkpoints of a run: the whole training state and what goes with it, by orbax."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import functools
import json
import logging as std_logging
import os
import pathlib
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from desloc_jax.checkpoints import checksums, same_view
from desloc_jax.checkpoints.damage import CheckpointDamaged, damage_of, one_line_error
from desloc_jax.checkpoints.leaves import LeafReader, named_leaves, PER_WORKER
from desloc_jax.checkpoints.signing import SigningHandler, SigningSave
from desloc_jax.checkpoints.train_state import TrainState
from desloc_jax.errors import UserError
from desloc_jax.hosts.peers import peers

STATE = 'state'
POSITION = 'position'
_POSITION_FILE = 'metadata'  # The name that orbax gives it.
_CHUNK_BYTES = 2**26  # At most.
_VIEW_S = 60  # Until all machines see what is on a shared disk; NFS takes so long at most.
# Of a machine's memory, the share for what is read ahead of a restore.
_AHEAD_SHARE, _MOST_AHEAD = 64, 2**32


class Checkpoints:
  """The checkpoints under one folder; saving is asynchronous and only the newest are kept.

  Of several processes all call the same methods. Every method that writes raises UserError where
  that is not possible (a full disk, say). What was complete before stays. What is there and cannot
  be opened, or does not fit into memory, is no damage: it is told and left as it is.
  """

  def __init__(self, folder: pathlib.Path, keep: int, keep_every: int = 0, view_s: float = _VIEW_S):
    """Takes a folder, which is made when it is first saved to; nothing is changed before that.

    Args:
      folder: of the checkpoints.
      keep: the newest so many are kept.
      keep_every: so are those of steps that it divides; 0: none.
      view_s: seconds that a process waits to see what process 0 sees.
    """
    self.folder = folder.resolve()
    self._keep, self._keep_every = keep, keep_every
    self._view_s = view_s
    self._saving: int | None = None
    std_logging.getLogger('absl').addFilter(_not_by_orbax)
    # Of a write that failed it would print what its siblings raised, each with a traceback.
    std_logging.getLogger('asyncio').setLevel(std_logging.CRITICAL)

  @functools.cached_property
  def _manager(self) -> ocp.CheckpointManager:
    same_view.wait_until_none_is_extra(self.folder, self._view_s)
    with one_line_error('cannot be opened', self.folder):
      return ocp.CheckpointManager(
        self.folder,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._keep,
          keep_period=self._keep_every or None,
          create=True,
          cleanup_tmp_directories=True,
          async_options=ocp.AsyncOptions(
            post_finalization_callback=self._sign,
            # With it, a folder that cannot be made would keep the process from ending for minutes.
            create_directories_asynchronously=False,
          ),
        ),
        item_handlers={
          # zstd takes most of a save, and makes it a little smaller.
          STATE: SigningHandler(use_compression=False),
          POSITION: ocp.JsonCheckpointHandler(),
        },
      )

  def steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints, the newest first; process 0 says which."""
    return same_view.agreed_steps(self.folder, self._view_s)

  def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
    """Starts to save; returns as soon as `state` may be donated. `position` is of JSON types.

    A failure may show only at the next call, or in `close`.
    """
    leaves = named_leaves(state)
    save_args = {name: chunks(name, leaf) for name, leaf in leaves.items()}
    items = {
      STATE: SigningSave(leaves, save_args=save_args),
      POSITION: ocp.args.JsonSave(position),
    }
    with one_line_error('cannot be saved', self.folder):
      self._manager.wait_until_finished()
      self._saving = step
      if not self._manager.save(step, args=ocp.args.Composite(**items)):
        raise RuntimeError(f'orbax refused step {step}: {self._manager.all_steps()} are there')

  def verify(self, step: int) -> None:
    """Compares the files of a checkpoint with their checksums, each file in one process.

    Raises:
      CheckpointDamaged: a file is missing, too short or too long, or has other contents, for
        process 0 too.
      UserError: a process cannot open a file, or does not see in time what process 0 sees.
    """
    folder = self.folder / str(step)

    def first_has() -> dict[str, list[int]]:
      with damage_of(folder):
        try:
          return checksums.read_entries(folder)
        except ValueError as error:
          raise _damaged(step, error) from error

    entries = peers().from_first(first_has, also=(CheckpointDamaged,))
    same_view.wait_until_visible(folder / checksums.FILE, self._view_s)

    def damage_in(some: Mapping[str, Sequence[int]]) -> tuple[str, str]:
      with damage_of(folder):
        return checksums.damaged_file(folder, some)

    mine = checksums.share(entries, peers().count, peers().index)
    bad, _ = peers().together(lambda: damage_in(mine))
    for process, name in enumerate(peers().gather(bad)):
      if not name:
        continue
      damage = peers().from_first(lambda name=name: damage_in({name: entries[name]}))[1]
      if damage:
        raise _damaged(step, damage)
      raise UserError(
        f'process {process} reads other contents of {folder / name} than process 0; all processes '
        'need one folder, on a disk that they share.'
      )

  def position(self, step: int) -> dict[str, Any]:
    """Returns what was saved beside the state, as process 0 reads it.

    Raises:
      CheckpointDamaged: it cannot be read.
    """

    folder = self.folder / str(step)
    return peers().from_first(lambda: read_position(folder), also=(CheckpointDamaged,))

  def leaves(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the saved arrays by name, from metadata alone.

    Raises:
      CheckpointDamaged: it cannot be read.
    """

    folder = self.folder / str(step)
    leaves = peers().from_first(lambda: read_shapes(folder), also=(CheckpointDamaged,))
    return {n: jax.ShapeDtypeStruct(tuple(shape), dtype) for n, (shape, dtype) in leaves.items()}

  def restore(self, step: int, state_like: TrainState) -> TrainState:
    """Returns the state of `step`, of the same arrays in these shapes, dtypes and shardings.

    Raises:
      CheckpointDamaged: on every process, where it cannot be read on one.
    """

    # Not by orbax, which after a read that fails prints pages of what its other reads raise.
    def read() -> list[jax.Array]:
      with self.reader(step) as reader:
        pending = [reader.start(name, like) for name, like in named_leaves(state_like).items()]
        return [wait() for wait in pending]

    leaves = peers().together(read, also=(CheckpointDamaged,))
    return jax.tree.unflatten(jax.tree.structure(state_like), leaves)

  @contextlib.contextmanager
  def reader(self, step: int) -> Iterator[LeafReader]:
    """Gives a reader of single arrays of a checkpoint.

    Raises:
      CheckpointDamaged: one of them cannot be read.
    """
    with damage_of(self.folder / str(step)):
      yield LeafReader(self.folder / str(step) / STATE, _ahead_bytes())

  def set_aside(self, step: int) -> None:
    """Renames a damaged checkpoint, so that it stands in nobody's way and can be looked at."""
    folder = self.folder / str(step)
    names = (
      self.folder / f'damaged-{step}{suffix}' for suffix in ('', *map('-{}'.format, range(1, 1000)))
    )
    with one_line_error('cannot be set aside', folder):
      if peers().is_first:
        folder.rename(next(name for name in names if not name.exists()))
      peers().wait_for_all()
      if '_manager' in vars(self):
        self._manager.reload()

  def close(self) -> None:
    """Waits until everything is on disk."""
    if '_manager' in vars(self):
      with one_line_error('cannot be saved', self.folder):
        self._manager.close()

  def _sign(self) -> None:
    """Signs what is saved, before orbax renames it to a complete checkpoint (despite the name of
    its callback): there is never one that is complete and not signed.
    """
    folder = self.folder / f'{self._saving}{ocp.utils.TMP_DIR_SUFFIX}'
    checksums.sign(folder, (STATE, POSITION), peers().count)


def read_position(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what was saved beside the state in the folder of a checkpoint; only this process reads.

  Raises:
    CheckpointDamaged: it cannot be read.
  """
  with damage_of(folder):
    return json.loads((folder / POSITION / _POSITION_FILE).read_bytes())


def read_shapes(folder: pathlib.Path) -> dict[str, tuple[Sequence[int], str]]:
  """Returns shape and dtype of the arrays of a checkpoint by name; only this process reads.

  Raises:
    CheckpointDamaged: it cannot be read.
  """
  with damage_of(folder):
    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder / STATE))
    return {name: (leaf.shape, str(leaf.dtype)) for name, leaf in tree.items()}


def chunks(name: str, leaf: jax.Array) -> ocp.SaveArgs:
  """Returns how a leaf is cut on disk: chunks are read whole.

  So never are two workers in one, and none is so large that processes which share a worker, but did
  not when it was saved, each read much that is for others.
  """
  # Shared moments are cut as if they were of workers: no harm.
  axes = (0,) if name.startswith(PER_WORKER) and leaf.ndim > 1 else ()
  return ocp.SaveArgs(shard_axes=axes, chunk_byte_size=_CHUNK_BYTES)


def _not_by_orbax(record: std_logging.LogRecord) -> bool:
  """Drops what orbax logs of an error, hundreds of lines: it is raised, and told in one."""
  return 'orbax' not in record.pathname


def _damaged(step: int, what: object) -> CheckpointDamaged:
  return CheckpointDamaged(f'The checkpoint of step {step} is damaged: {what}.')


def _ahead_bytes() -> int:
  """Returns how many bytes a restore may read ahead, by the memory of this machine."""
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return min(memory // _AHEAD_SHARE, _MOST_AHEAD)
