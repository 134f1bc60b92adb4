"""Checkpoints of a run: the whole training state and what goes with it, by orbax."""

from collections.abc import Iterator
import contextlib
import functools
import logging as std_logging
import os
import pathlib
import re
from typing import Any

import jax
import orbax.checkpoint as ocp

from desloc_jax.errors import UserError
from desloc_jax.train import checksums, exchange, processes
from desloc_jax.train.leaves import LeafReader, named_leaves, PER_WORKER
from desloc_jax.train.step import TrainState

STATE = 'state'
POSITION = 'position'


class CheckpointDamaged(Exception):
  """Files of a checkpoint are missing or are not as they were written; names one."""


class Checkpoints:
  """The checkpoints under one folder; saving is asynchronous and only the newest are kept.

  Every method that writes raises UserError where that is not possible (a full disk, say). What was
  complete before stays.
  """

  def __init__(self, folder: pathlib.Path, keep: int):
    """Takes `folder`, which is made when it is first saved to, to keep the newest `keep`."""
    self.folder = folder.absolute()
    self._keep = keep
    self._saving: int | None = None
    std_logging.getLogger('absl').addFilter(_not_by_orbax)
    # Of a write that failed it would print what its siblings raised, each with a traceback.
    std_logging.getLogger('asyncio').setLevel(std_logging.CRITICAL)

  @functools.cached_property
  def _manager(self) -> ocp.CheckpointManager:
    with one_line_error('cannot be opened', self.folder):
      return ocp.CheckpointManager(
        self.folder,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._keep,
          create=True,
          cleanup_tmp_directories=True,
          async_options=ocp.AsyncOptions(
            post_finalization_callback=self._sign,
            # With it, a folder that cannot be made would keep the process from ending for minutes.
            create_directories_asynchronously=False,
          ),
        ),
        item_handlers={
          STATE: ocp.StandardCheckpointHandler(),
          POSITION: ocp.JsonCheckpointHandler(),
        },
      )

  def steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints, the newest first."""
    return sorted(self._manager.all_steps(), reverse=True) if self.folder.exists() else []

  def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
    """Starts to save; returns as soon as `state` may be donated. `position` is of JSON types.

    A failure may show only at the next call, or in `close`.
    """
    leaves = named_leaves(state)
    save_args = {name: chunks(name, leaf) for name, leaf in leaves.items()}
    items = {
      STATE: ocp.args.StandardSave(leaves, save_args=save_args),
      POSITION: ocp.args.JsonSave(position),
    }
    with one_line_error('cannot be saved', self.folder):
      self._manager.wait_until_finished()
      self._saving = step
      if not self._manager.save(step, args=ocp.args.Composite(**items)):
        raise RuntimeError(f'orbax refused step {step}, the newest being {self.steps()[0]}')

  def verify(self, step: int) -> None:
    """Compares the files of a checkpoint with their checksums.

    Raises:
      CheckpointDamaged: a file is missing, too short or too long, or has other contents.
    """
    with _damage_of(self.folder / str(step)):
      damage = checksums.find_damage(self.folder / str(step))
    if damage:
      raise CheckpointDamaged(f'The checkpoint of step {step} is damaged: {damage}.')

  def position(self, step: int) -> dict[str, Any]:
    """Returns what was saved beside the state.

    Raises:
      CheckpointDamaged: it cannot be read.
    """
    with _damage_of(self.folder / str(step)):
      items = {POSITION: ocp.args.JsonRestore()}
      return self._manager.restore(step, args=ocp.args.Composite(**items))[POSITION]

  def leaves(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the saved arrays by name, from metadata alone.

    Raises:
      CheckpointDamaged: it cannot be read.
    """
    with _damage_of(self.folder / str(step)):
      metadata = self._manager.item_metadata(step)[STATE]
      return {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for n, leaf in metadata.items()}

  def restore(self, step: int, state_like: TrainState) -> TrainState:
    """Returns the state of `step`, of the same arrays in these shapes, dtypes and shardings.

    Raises:
      CheckpointDamaged: it cannot be read.
    """
    # Not by orbax, which after a read that fails prints pages of what its other reads raise.
    with self.reader(step) as reader:
      leaves = [reader.read(name, like) for name, like in named_leaves(state_like).items()]
    return jax.tree.unflatten(jax.tree.structure(state_like), leaves)

  @contextlib.contextmanager
  def reader(self, step: int) -> Iterator[LeafReader]:
    """Gives a reader of single arrays of a checkpoint.

    Raises:
      CheckpointDamaged: one of them cannot be read.
    """
    with _damage_of(self.folder / str(step)):
      yield LeafReader(self.folder / str(step) / STATE)

  def set_aside(self, step: int) -> None:
    """Renames a damaged checkpoint, so that it stands in nobody's way and can be looked at."""
    folder = self.folder / str(step)
    names = (
      self.folder / f'damaged-{step}{suffix}' for suffix in ('', *map('-{}'.format, range(1, 1000)))
    )
    with one_line_error('cannot be set aside', folder):
      if processes.writes():
        folder.rename(next(name for name in names if not name.exists()))
      exchange.wait_for_all()
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
    checksums.sign(folder, (STATE, POSITION))


def chunks(name: str, leaf: jax.Array) -> ocp.SaveArgs:
  """Returns how a leaf is cut on disk: never two workers in a chunk, as chunks are read whole."""
  if not name.startswith(PER_WORKER) or leaf.ndim < 2:  # Shared moments are cut likewise: no harm.
    return ocp.SaveArgs()
  return ocp.SaveArgs(shard_axes=(0,))


def _not_by_orbax(record: std_logging.LogRecord) -> bool:
  """Drops what orbax logs of an error, hundreds of lines: it is raised, and told in one."""
  return 'orbax' not in record.pathname


@contextlib.contextmanager
def _damage_of(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # orbax raises of many kinds, each with pages of context.
    if processes.is_lost_peer(error):
      raise
    raise CheckpointDamaged(f'The checkpoint {folder} cannot be read: {_reason(error)}.') from error


@contextlib.contextmanager
def one_line_error(what: str, folder: pathlib.Path) -> Iterator[None]:
  """Turns whatever keeps `folder` from being written into a UserError with the system's reason."""
  try:
    yield
  except Exception as error:
    if processes.is_lost_peer(error):
      raise
    raise UserError(
      f'the checkpoint in {folder} {what}: {_reason(error)}. What was complete before is kept.'
    ) from error


def _reason(error: BaseException) -> str:
  while cause := error.__cause__ or error.__context__:
    error = cause
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  lines = str(error).strip().splitlines() or [type(error).__name__]
  # tensorstore says why after all of the path, with the system's number in brackets.
  from_system = re.search(r"\[os_error_code='(\d+)'|\[OS error (\d+)", str(error))
  return os.strerror(int(from_system[1] or from_system[2])) if from_system else lines[0][:300]
