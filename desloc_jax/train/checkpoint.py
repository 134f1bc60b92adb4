"""Checkpoints of a run: the whole training state and the data position, by orbax."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from desloc_jax.errors import UserError
from desloc_jax.train.step import TrainState

STATE = 'state'
POSITION = 'position'


class Checkpoints:
  """The checkpoints under one folder; saving is asynchronous and only the newest are kept."""

  def __init__(self, folder: pathlib.Path, keep: int):
    """Opens `folder`, which is made if it does not exist, to keep the newest `keep` checkpoints."""
    self._manager = ocp.CheckpointManager(
      folder.absolute(),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
      item_handlers={STATE: ocp.StandardCheckpointHandler(), POSITION: ocp.JsonCheckpointHandler()},
    )

  def latest_step(self) -> int | None:
    """Returns the step of the newest complete checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
    """Starts to save; returns as soon as `state` may be donated. `position` is of JSON types."""
    items = {STATE: ocp.args.StandardSave(_as_tree(state)), POSITION: ocp.args.JsonSave(position)}
    self._manager.save(step, args=ocp.args.Composite(**items))

  def restore(self, step: int, state_like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state and data position of `step`.

    Args:
      step: of a checkpoint.
      state_like: shapes, dtypes and shardings to restore into.

    Raises:
      UserError: it is damaged, or of another kind of state.
    """
    items = {
      STATE: ocp.args.StandardRestore(_as_tree(state_like)),
      POSITION: ocp.args.JsonRestore(),
    }
    try:
      restored = self._manager.restore(step, args=ocp.args.Composite(**items))
      leaves = [restored[STATE][name] for name in _names(state_like)]
    except Exception as error:  # orbax raises of many kinds, each with pages of context.
      reason = str(error).strip().splitlines() or [type(error).__name__]
      raise UserError(
        f'the checkpoint {self._manager.directory / str(step)} cannot be restored: {reason[0][:300]}. '
        'Move it away to go on from the one before.'
      ) from error
    return jax.tree.unflatten(jax.tree.structure(state_like), leaves), restored[POSITION]

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def _names(state: TrainState) -> list[str]:
  paths = [path for path, _ in jax.tree.leaves_with_path(state)]
  return [jax.tree_util.keystr(path, simple=True, separator='.') for path in paths]


def _as_tree(state: TrainState) -> dict[str, Any]:
  """Returns the leaves by dotted name: a layout on disk that no optax container type is part of."""
  return dict(zip(_names(state), jax.tree.leaves(state), strict=True))
