"""How a run begins, or goes on from a checkpoint: the same run, or with other workers or options.

1. The newest checkpoint whose files are whole is taken; a damaged one is named and set aside.
   Process 0 says which that is.
2. What differs between its configuration and this one must be permitted (`options/changes.py`), and
   what differs in the data (`data_changes.py`).
3. Nothing differs: the state is restored bit for bit and the run's segment goes on. Otherwise a
   new segment begins, and each array of the new state is made from the checkpoint's arrays.
"""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
import pathlib
from typing import Any

from absl import logging
import jax
from ml_collections import config_dict
import numpy as np

from desloc_jax.checkpoints.damage import CheckpointDamaged
from desloc_jax.checkpoints.leaves import named_leaves
from desloc_jax.checkpoints.segment import make_clock, Segment
from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.checkpoints.train_state import TrainState
from desloc_jax.errors import UserError
from desloc_jax.hosts.peers import peers
from desloc_jax.optimizer.methods import METHODS
from desloc_jax.options.changes import changed_options
from desloc_jax.options.values import flatten
from desloc_jax.train.job import Job, make_job
from desloc_jax.train.resume.begin import open_initial, read_initial, state_from
from desloc_jax.train.resume.data_changes import data_changes
from desloc_jax.train.resume.transfer import Before, Transfer
from desloc_jax.train.setup.open_data import open_texts


def begin_or_go_on(
  config: config_dict.ConfigDict,
  devices: Sequence[jax.Device] | None,
  checkpoints: Checkpoints,
) -> tuple[Job, TrainState, int, str]:
  """Returns the job, its state, the step that it is at, and what was changed, or what it begins
  from, in one line.

  Raises:
    UserError: the configuration cannot work or does not fit the run, or there are checkpoints and
      all of them are damaged.
  """
  damaged = []
  for step in checkpoints.steps():
    try:
      checkpoints.verify(step)
      result = _go_on(config, devices, checkpoints, step)
    except CheckpointDamaged as error:
      logging.warning('%s Going back to the checkpoint before.', error)
      damaged.append(step)
      continue
    for each in damaged:
      checkpoints.set_aside(each)
    return result
  if damaged:
    raise UserError(
      f'all checkpoints in {checkpoints.folder} are damaged (steps {", ".join(map(str, damaged))}); '
      'they were left as they are. Bring back their files, or begin anew in another --workdir.'
    )
  return _begin(config, devices)


def _begin(
  config: config_dict.ConfigDict, devices: Sequence[jax.Device] | None
) -> tuple[Job, TrainState, int, str]:
  texts = peers().together(lambda: open_texts(config))
  stored = peers().together(lambda: open_initial(config, texts.tokenizer))
  job = make_job(config, devices, texts=texts)
  if stored is None:
    return job, job.program.make_state(), 0, ''
  line = f'begun from {stored.label}'
  if peers().is_first:
    print(f'{line[0].upper()}{line[1:]}.')
  params = peers().together(lambda: read_initial(job, stored))
  return job, state_from(job, params), 0, line


def _go_on(
  config: config_dict.ConfigDict,
  devices: Sequence[jax.Device] | None,
  checkpoints: Checkpoints,
  step: int,
) -> tuple[Job, TrainState, int, str]:
  position = _read_position(checkpoints, step)
  changed = list(changed_options(config, position['config']).values())
  texts = peers().together(lambda: open_texts(config))
  following, data_changed = data_changes(config, texts, position)
  changed += data_changed
  segment = following if changed else position['segment']
  if _has_ended(config, segment, step, changed, checkpoints.folder.parent):
    config = _evaluated_as(config, position['config'])
  job = make_job(config, devices, segment, texts)
  leaves = checkpoints.leaves(step)
  # Of an older version: what has come since begins anew.
  complete = named_leaves(job.program.state_like).keys() <= leaves.keys()
  if complete and not changed:
    if peers().is_first:
      print(f'Going on after step {step}.')
    return job, checkpoints.restore(step, job.program.state_like), step, ''
  before = Before(
    leaves=leaves,
    workers=position['config']['workers'],
    shared_moments=METHODS[position['config']['method']].gradients,
    finite=position['finite'],
    step=step,
  )
  plan = Transfer(job, before)
  with checkpoints.reader(step) as reader:
    arrays = peers().together(lambda: plan.read(reader), also=(CheckpointDamaged,))
  state, summary = plan.state(arrays)
  line = f'{", ".join(changed or ["a checkpoint of older code"])}; {summary}'
  if peers().is_first:
    print(f'Going on after step {step} with changes: {line}.')
  return job, state, step, line


def _has_ended(
  config: config_dict.ConfigDict,
  segment: Segment,
  step: int,
  changed: Sequence[str],
  workdir: pathlib.Path,
) -> bool:
  """Returns whether a run at `step` is at its end.

  Raises:
    UserError: it is past its end, or has ended and would become another.
  """
  last_step = make_clock(config, segment).last_step
  stop = config.stop_at or last_step
  if step > stop:
    raise UserError(
      f'{workdir} is at step {step} already and this run would end at step {stop}; '
      'raise stop_at up to steps, or use another --workdir.'
    )
  if step == stop and changed:
    raise UserError(
      f'{workdir} has ended at step {step}, and this run would make no step with what differs: '
      f'{", ".join(changed)}. Use what it was made with, raise stop_at or steps, or use another '
      '--workdir.'
    )
  return step == stop


def _evaluated_as(
  config: config_dict.ConfigDict, before: Mapping[str, Any]
) -> config_dict.ConfigDict:
  """Returns a config with the options of the evaluation that has been: its result stays what it is."""
  config = copy.deepcopy(config)
  config.update_from_flattened_dict(
    {name: value for name, value in before.items() if name.startswith('eval.')}
  )
  return config


def _read_position(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
  """Returns what `position_after` made of a checkpoint, its segments as such.

  Raises:
    CheckpointDamaged: it is something else.
  """
  position = checkpoints.position(step)
  try:
    if position['step'] != step or not isinstance(position['data'], str):
      raise ValueError(f'it is of step {position["step"]!r}')
    before, finite = position['config'], position['finite']
    counts = (1, before['workers'])  # One where all is shared.
    if before['method'] not in METHODS or len(finite) not in counts or not any(finite):
      raise ValueError('its workers are not those of its config')
    contents = position.get('contents', {})
    texts = [text for hashes in contents.values() for text in (*hashes, len(hashes))]
    if [type(text) for text in texts] != [str, str, int] * len(contents):
      raise ValueError('its data are not named by hashes')
    segments = {part: Segment(**position[part]) for part in ('segment', 'next')}
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise CheckpointDamaged(
      f'The checkpoint of step {step} has a position that no run wrote: {error!r:.200}.'
    ) from error
  return position | segments


def position_after(
  job: Job, step: int, syncs: Mapping[str, int], finite: np.ndarray
) -> dict[str, Any]:
  """Returns what a checkpoint after `step` holds beside the state, as JSON types.

  Args:
    job: that is running.
    step: of the checkpoint.
    syncs: averages of each quantity so far.
    finite: boolean [workers], which workers' arrays are finite.
  """
  clock, segment = job.clock, job.clock.segment
  following = Segment(
    step=step,
    consumed=job.data.stream.consumed(step),
    tokens=clock.tokens(step),
    progress=float(clock.progress(step)),
    schedule_tokens=segment.schedule_tokens or clock.batch.tokens,
    bytes_per_worker=job.bytes_after(syncs),
    syncs=dict(syncs),
    orders=segment.orders,
  )
  return {
    'step': step,
    'data': job.data.fingerprint,
    'contents': job.data.contents,
    'tokenizer': job.data.tokenizer.fingerprint,
    'config': flatten(job.config),
    'finite': finite.tolist(),
    'segment': dataclasses.asdict(segment),
    'next': dataclasses.asdict(following),
  }
