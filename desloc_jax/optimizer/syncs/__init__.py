"""Syncs: what workers send of a quantity, one file an operator."""

from desloc_jax.optimizer.syncs.anchored import anchored
from desloc_jax.optimizer.syncs.by_tokens import by_tokens
from desloc_jax.optimizer.syncs.byzantine.attacked import attacked, ATTACKS
from desloc_jax.optimizer.syncs.byzantine.clip_to_median import clip_to_median
from desloc_jax.optimizer.syncs.byzantine.geometric_median import geometric_median
from desloc_jax.optimizer.syncs.byzantine.krum import krum
from desloc_jax.optimizer.syncs.byzantine.of_neighbours import of_neighbours
from desloc_jax.optimizer.syncs.byzantine.robust import check_byzantine
from desloc_jax.optimizer.syncs.byzantine.trimmed_mean import median, trimmed_mean
from desloc_jax.optimizer.syncs.compressed.channels import Channel, in_slices, to_everybody
from desloc_jax.optimizer.syncs.compressed.ef21 import econtrol, ef21
from desloc_jax.optimizer.syncs.compressed.encodings import (
  Encoding,
  floats,
  four_levels,
  logarithmic,
  uniform,
)
from desloc_jax.optimizer.syncs.compressed.quantised import quantised
from desloc_jax.optimizer.syncs.compressed.topk import AVERAGES, largest, topk
from desloc_jax.optimizer.syncs.control import control
from desloc_jax.optimizer.syncs.edit import edit
from desloc_jax.optimizer.syncs.exempt import exempt
from desloc_jax.optimizer.syncs.fedau import fedau
from desloc_jax.optimizer.syncs.fedstale import fedstale
from desloc_jax.optimizer.syncs.gossip import check_hypercube, gossip
from desloc_jax.optimizer.syncs.landing import (
  eager,
  keep,
  Landing,
  LANDINGS,
  make_landing,
  mix,
  OVERWRITE,
)
from desloc_jax.optimizer.syncs.mean import mean
from desloc_jax.optimizer.syncs.named import make_sync, POSITIVE, ROBUST, SUMS, SYNCS, TAKE
from desloc_jax.optimizer.syncs.sync import Context, Memory, MEMORY_AXES, Sync

__all__ = [
  'ATTACKS',
  'AVERAGES',
  'Channel',
  'Context',
  'Encoding',
  'LANDINGS',
  'Landing',
  'MEMORY_AXES',
  'Memory',
  'OVERWRITE',
  'POSITIVE',
  'ROBUST',
  'SUMS',
  'SYNCS',
  'TAKE',
  'Sync',
  'anchored',
  'attacked',
  'by_tokens',
  'check_byzantine',
  'check_hypercube',
  'clip_to_median',
  'control',
  'eager',
  'econtrol',
  'edit',
  'ef21',
  'exempt',
  'fedau',
  'fedstale',
  'floats',
  'four_levels',
  'geometric_median',
  'gossip',
  'in_slices',
  'keep',
  'krum',
  'largest',
  'logarithmic',
  'make_landing',
  'make_sync',
  'mean',
  'median',
  'mix',
  'of_neighbours',
  'quantised',
  'to_everybody',
  'topk',
  'trimmed_mean',
  'uniform',
]
