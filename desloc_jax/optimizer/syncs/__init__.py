"""Syncs: what workers send of a quantity, one file an operator."""

from desloc_jax.optimizer.syncs.anchored import anchored
from desloc_jax.optimizer.syncs.channels import Channel, in_slices, to_everybody
from desloc_jax.optimizer.syncs.ef21 import econtrol, ef21
from desloc_jax.optimizer.syncs.encodings import (
  Encoding,
  floats,
  four_levels,
  logarithmic,
  uniform,
)
from desloc_jax.optimizer.syncs.exempt import exempt
from desloc_jax.optimizer.syncs.mean import mean
from desloc_jax.optimizer.syncs.named import make_sync, SYNCS, TAKE
from desloc_jax.optimizer.syncs.quantised import quantised
from desloc_jax.optimizer.syncs.sync import Context, Memory, MEMORY_AXES, Sync
from desloc_jax.optimizer.syncs.topk import AVERAGES, largest, topk

__all__ = [
  'AVERAGES',
  'Channel',
  'Context',
  'Encoding',
  'MEMORY_AXES',
  'Memory',
  'SYNCS',
  'TAKE',
  'Sync',
  'anchored',
  'econtrol',
  'ef21',
  'exempt',
  'floats',
  'four_levels',
  'in_slices',
  'largest',
  'logarithmic',
  'make_sync',
  'mean',
  'quantised',
  'to_everybody',
  'topk',
  'uniform',
]
