"""The sizes at which every experiment runs, and how its runs are made from what it varies.

`cpu`: minutes on two cores, a model of 0.1M on the built-in text as bytes; no run reads a text
twice. `cpu-long`: the same at twice the K_x and 5.3 times as many steps, a night on two cores: 64
averages of the parameters and 10 of the second moment. `gpu`: one card, a model of 16M. `paper`: 135M in
the paper's own setting, for a pod. Both take the paper's data under data/ (see configs/gpt.py), or the
built-in text as `gpu:sotu`, `paper:sotu`. `test`: seconds a run, to see that the code works.
"""

from collections.abc import Callable, Mapping, Sequence
import copy
import dataclasses
import pathlib
from typing import Any

from ml_collections import config_dict

from configs import gpt, tiny
from desloc_jax.errors import unknown_choice
from desloc_jax.options.values import flatten
from experiments.runs import Run

Options = Mapping[str, Any]  # By dotted name.


@dataclasses.dataclass(frozen=True)
class Scale:
  """One size of all experiments.

  Attributes:
    name: as on the command line.
    config: what runs have in common; periods.params is the K_x where an experiment has one.
    seeds: of each variant.
    fast: K_x of the paper's high-frequency regime, 16 there.
    slow: of its low-frequency regime, 256 there.
    sizes: what differs in the runs of each model of the comparison over sizes, by its name.
    maps: whether experiments that can draw a map over more settings do.
    results: folder in which experiments that build on the results of others look for them first.
  """

  name: str
  config: config_dict.ConfigDict
  seeds: int
  fast: int
  slow: int
  sizes: Mapping[str, Options]
  maps: bool = False
  results: pathlib.Path | None = None

  def with_seeds(self, seeds: int) -> 'Scale':
    """Returns the scale with another number of seeds."""
    return dataclasses.replace(self, seeds=seeds)

  def runs(
    self,
    variants: Mapping[str, Options],
    *,
    labels: Mapping[str, Any] | None = None,
    after: Sequence[Run] | None = None,
    keep_checkpoints: bool = False,
    measure: Callable[[pathlib.Path], Any] | None = None,
  ) -> list[Run]:
    """Returns a run of each variant for each seed, all variants of a seed before the next one.

    Args:
      variants: options that differ from `config`, by the name of the variant.
      labels: more columns, the same for all.
      after: the runs that these go on from, one a seed.
      keep_checkpoints: see `Run`.
      measure: see `Run`.
    """
    return [
      Run(
        {'variant': variant, **(labels or {})},
        changed(self.config, {**options, 'seed': seed}),
        after[seed] if after else None,
        keep_checkpoints,
        measure,
      )
      for seed in range(self.seeds)
      for variant, options in variants.items()
    ]


def changed(config: config_dict.ConfigDict, options: Options) -> config_dict.ConfigDict:
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
    'batch_size': 2, 'seq_len': 16, 'steps': 12, 'log_every': 1, 'periods.params': 2,
    'schedule.warmup_steps': 2, 'model.layers': 1, 'model.width': 16, 'model.heads': 1,
    'eval.every': 4, 'eval.sequences': 8, 'checkpoint.every': 6,
    'model.remat': 'none',
  }  # fmt: skip
  sizes = _shapes((1, 16, 1), (1, 32, 1))
  return Scale('test', changed(tiny.get_config(), options), 2, 2, 4, sizes, maps=True)


def _cpu() -> Scale:
  # At tiny's rate of 4e-3, and at 3e-3, some seeds have a spike at the end of the warm-up.
  options = {
    'batch_size': 4, 'seq_len': 64, 'steps': 384, 'log_every': 4, 'periods.params': 16,
    'schedule.warmup_steps': 48, 'inner.learning_rate': 2e-3, 'model.layers': 2, 'model.width': 64, 'model.heads': 2,
    'eval.every': 64, 'eval.sequences': 512, 'checkpoint.every': 192,
  }  # fmt: skip
  sizes = _shapes((1, 32, 1), (2, 64, 2), (2, 128, 4))
  return Scale('cpu', changed(tiny.get_config(), options), 6, 8, 32, sizes)


def _cpu_long() -> Scale:
  options = {
    'steps': 2048, 'log_every': 8, 'periods.params': 32, 'schedule.warmup_steps': 256,
    'eval.every': 256, 'checkpoint.every': 1024,
  }  # fmt: skip
  sizes = _shapes((1, 32, 1), (2, 64, 2), (2, 128, 4), (4, 128, 4))
  return Scale('cpu-long', changed(_cpu().config, options), 6, 16, 64, sizes, maps=True)


def _gpu(data: str) -> Scale:
  options = {
    'batch_size': 16, 'accumulation': 1, 'steps': 1536, 'log_every': 8, 'periods.params': 32,
    'schedule.warmup_steps': 128, 'eval.every': 128, 'eval.sequences': 256, 'model.remat': 'none',
  }  # fmt: skip
  sizes = _shapes((2, 128, 2), (4, 256, 4), (6, 384, 6), (12, 768, 12))
  return Scale('gpu', changed(gpt.get_config(f'16m:{data}'), options), 3, 16, 64, sizes)


def _paper(data: str) -> Scale:
  config = gpt.get_config(f'135m:{data}')
  sizes = {
    f'gpt_{size}': _difference(gpt.get_config(f'{size}:{data}'), config)
    for size in ('135m', '360m', '720m', '1b', '1_7b')
  }
  return Scale('paper', config, 3, 16, 256, sizes)


def _shapes(*shapes: tuple[int, int, int]) -> dict[str, Options]:
  """Returns the options of models of so many layers, width and heads."""
  return {
    f'{layers} x {width}': {'model.layers': layers, 'model.width': width, 'model.heads': heads}
    for layers, width, heads in shapes
  }


def _difference(config: config_dict.ConfigDict, base: config_dict.ConfigDict) -> dict[str, Any]:
  before = flatten(base)
  return {name: value for name, value in flatten(config).items() if value != before[name]}


SCALES = {'cpu': _cpu, 'cpu-long': _cpu_long, 'gpu': _gpu, 'paper': _paper, 'test': _test}
