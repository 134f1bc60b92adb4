"""Exported models as transformers loads them, against ours: logits of random models of all kinds.

  pip install -r requirements-export.txt
  python -m experiments.systems.exported --output=experiments/results/exported.md

Each is written, loaded by AutoModelForCausalLM in float32, and compared on a built-in message.
"""

from collections.abc import Iterator, Sequence
import functools
import importlib
import pathlib
import tempfile

from ml_collections import config_dict
import numpy as np

from desloc_jax import commands, data, model as model_lib
from desloc_jax.commands import Option
from desloc_jax.hub import check, export, layouts
from desloc_jax.hub.run_models import open_steps
from desloc_jax.hub.stored import leaf_names, StoredModel
from desloc_jax.logs.workdir import write_text
from desloc_jax.options.values import model_config
from desloc_jax.paths import resolve
from experiments.report import markdown

CONFIGS = ('tiny', 'gpt_16m', 'gpt_125m', 'gpt_135m')
_GATED = {'mlp': 'gated', 'mlp_hidden': 384, 'norm_eps': 1e-5, 'kv_heads': 2, 'rope_base': 5e5}
# What is changed of `tiny`.
KINDS = {
  'qk_norm': {'qk_norm': True},
  'gated': _GATED,
  'gated, untied': {**_GATED, 'tie_embeddings': False},
  "gated, Llama 3's positions": {**_GATED, 'rope_scaling': (8.0, 1.0, 4.0, 32.0)},
  'gated, qk_norm, head size': {**_GATED, 'qk_norm': True, 'head_size': 48},
}


class RandomModel:
  """A `StoredModel` before training.

  Scales are away from one and attention is far from even, so that a dropped scale or other positions
  would show.
  """

  about = {'run': 'random', 'step': 0}

  def __init__(self, config: model_lib.GPTConfig, seq_len: int, tokenizer: str = 'bytes'):
    self.config, self.seq_len, self.label = config, seq_len, 'a random model'
    self.tokenizer = data.load_tokenizer(tokenizer)

  @functools.cached_property
  def leaves(self) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
      name: random.uniform(0.5, 2, like.shape).astype(np.float32)
      if name.endswith('scale')
      else random.standard_normal(like.shape, np.float32) / np.float32(like.shape[-1] ** 0.5)
      for name, like in leaf_names(self.config).items()
    }

  def read(self, leaf: str) -> np.ndarray:
    return self.leaves[leaf]


def models() -> Iterator[tuple[str, RandomModel]]:
  """Yields the models of the table."""
  for name in CONFIGS:
    yield name, _model(_config(name))
  for name, changes in KINDS.items():
    config = _config('tiny')
    config.model.update(changes)
    yield f'tiny, {name}', _model(config)


def _config(name: str) -> config_dict.ConfigDict:
  module = importlib.import_module(f'configs.{name}')
  return module.get_config()


def _model(config: config_dict.ConfigDict) -> RandomModel:
  return RandomModel(model_config(config, vocab_size=257), config.seq_len)


def _compare(stored: StoredModel) -> tuple[str, ...]:
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / 'out'
    export.export(stored, folder)
    found = check.check_folder(stored, folder, 'float32')
  layout = layouts.find_layout(stored.config)
  return (
    found.version, layout.architecture, str(found.tokens), f'{found.difference:.1e}',
    f'{found.largest:.1f}', f'{found.same:.1%}',
  )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the table; a mistake ends in one line and exit code 2."""
  with commands.one_line_errors():
    arguments = commands.parse(
      'experiments.systems.exported',
      __doc__,
      argv,
      output=Option(pathlib.Path, 'FILE.md of the table', required=True),
      workdir=Option(pathlib.Path, 'a trained run, as one more row'),
    )
    check.check_available()
    trained = []
    if arguments.workdir:
      model = open_steps(resolve(arguments.workdir, '--workdir'))[0]
      trained = [(f'trained, {model.label}', model)]
    rows = [('model', 'transformers', 'as', 'tokens', 'largest difference', 'largest logit',
             'same best token')]  # fmt: skip
    for name, stored in (*models(), *trained):
      rows.append((name, *_compare(stored)))
      print(*rows[-1], sep=', ', flush=True)
    write_text(pathlib.Path(arguments.output), markdown(rows) + '\n')


if __name__ == '__main__':
  main()
