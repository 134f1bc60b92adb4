"""The sizes at which every experiment runs, and how its runs are made from what it varies.

`cpu`: minutes on two cores, a model of 0.1M on the built-in text as bytes; no run reads a text twice.
`gpu`: one card, a model of 16M. `paper`: 135M in the paper's own setting, for a pod. Both take the
paper's data under data/ (see configs/common.py), or the built-in text as `gpu:sotu`, `paper:sotu`.
`test`: seconds a run, to see that the code works.
"""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
from typing import Any

from ml_collections import config_dict

from configs import gpt_16m, gpt_135m, tiny
from desloc_jax.errors import unknown_choice
from experiments.runs import Run

Shape = tuple[int, int, int]  # Layers, width, heads.


@dataclasses.dataclass(frozen=True)
class Scale:
  """One size of all experiments.

  Attributes:
    name: as on the command line.
    config: what runs have in common; periods.params is the K_x where an experiment has one.
    seeds: of each variant.
    fast: K_x of the paper's high-frequency regime, 16 there.
    slow: of its low-frequency regime, 256 there.
    sizes: models of the comparison over sizes.
  """

  name: str
  config: config_dict.ConfigDict
  seeds: int
  fast: int
  slow: int
  sizes: Sequence[Shape]

  def with_seeds(self, seeds: int) -> 'Scale':
    """Returns the scale with another number of seeds."""
    return dataclasses.replace(self, seeds=seeds)

  def runs(
    self,
    variants: Mapping[str, Mapping[str, Any]],
    *,
    labels: Mapping[str, Any] | None = None,
    after: Sequence[Run] | None = None,
    keep_checkpoints: bool = False,
  ) -> list[Run]:
    """Returns a run of each variant for each seed, all variants of a seed before the next one.

    Args:
      variants: options that differ from `config`, by the name of the variant.
      labels: more columns, the same for all.
      after: the runs that these go on from, one a seed.
      keep_checkpoints: see `Run`.
    """
    return [
      Run(
        {'variant': variant, **(labels or {})},
        changed(self.config, {**options, 'seed': seed}),
        after[seed] if after else None,
        keep_checkpoints,
      )
      for seed in range(self.seeds)
      for variant, options in variants.items()
    ]


def changed(config: config_dict.ConfigDict, options: Mapping[str, Any]) -> config_dict.ConfigDict:
  """Returns a copy of `config` with these options, by dotted name."""
  config = copy.deepcopy(config)  # ConfigDict(config) would share the groups of options.
  config.update_from_flattened_dict(dict(options))
  return config


def make_scale(name: str) -> Scale:
  """Returns the scale called `name`.

  Raises:
    UserError: there is none of this name.
  """
  base, _, data = name.partition(':')
  if base not in SCALES or (data and base not in ('gpu', 'paper')):
    raise unknown_choice('--scale', name, [*SCALES, 'gpu:sotu', 'paper:sotu'])
  return SCALES[base](data or 'paper') if base in ('gpu', 'paper') else SCALES[base]()


def _test() -> Scale:
  options = {
    'batch_size': 1, 'seq_len': 16, 'steps': 12, 'log_every': 1, 'periods.params': 2,
    'schedule.warmup_steps': 2, 'model.layers': 1, 'model.width': 16, 'model.heads': 1,
    'eval.every': 4, 'eval.sequences': 8, 'eval.local_mean': False, 'checkpoint.every': 6,
    'model.remat': 'none',
  }  # fmt: skip
  sizes = ((1, 16, 1), (1, 32, 1))
  return Scale('test', changed(tiny.get_config(), options), 2, 2, 4, sizes)


def _cpu() -> Scale:
  options = {
    'batch_size': 4, 'seq_len': 64, 'steps': 512, 'log_every': 4, 'periods.params': 16,
    'schedule.warmup_steps': 32, 'model.layers': 2, 'model.width': 64, 'model.heads': 2,
    'eval.every': 64, 'eval.sequences': 512, 'eval.local_mean': False, 'checkpoint.every': 256,
  }  # fmt: skip
  sizes = ((1, 32, 1), (2, 64, 2), (2, 128, 4))
  return Scale('cpu', changed(tiny.get_config(), options), 3, 8, 32, sizes)


def _gpu(data: str) -> Scale:
  options = {
    'batch_size': 16, 'accumulation': 1, 'steps': 1536, 'log_every': 8, 'periods.params': 32,
    'schedule.warmup_steps': 128, 'eval.every': 128, 'eval.sequences': 256, 'model.remat': 'none',
    'eval.local_mean': False,
  }  # fmt: skip
  sizes = ((2, 128, 2), (4, 256, 4), (6, 384, 6), (12, 768, 12))
  return Scale('gpu', changed(gpt_16m.get_config(data), options), 3, 16, 64, sizes)


def _paper(data: str) -> Scale:
  sizes = ((30, 576, 9), (32, 960, 15), (12, 2048, 16), (24, 2048, 16), (32, 2048, 16))
  return Scale('paper', gpt_135m.get_config(data), 3, 16, 256, sizes)


SCALES = {'cpu': _cpu, 'gpu': _gpu, 'paper': _paper, 'test': _test}
