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
from desloc_jax.hub import check, export
from desloc_jax.hub.runs import open_steps
from desloc_jax.hub.stored import leaf_names
from desloc_jax.logs.workdir import write_text
from desloc_jax.options.table import model_config
from desloc_jax.paths import resolve

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
  """A `StoredModel` before training, its scales away from one, so that a dropped scale would show."""

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
      else 0.02 * random.standard_normal(like.shape, np.float32)
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


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the table; a mistake ends in one line and exit code 2."""
  with commands.one_line_errors():
    parser = commands.make_parser('experiments.systems.exported', __doc__)
    parser.add_argument('--output', required=True, metavar='FILE.md')
    parser.add_argument('--workdir', metavar='RUN', help='a trained run, as one more row')
    arguments = parser.parse_args(argv)
    check.check_available()
    trained = []
    if arguments.workdir:
      model = open_steps(resolve(arguments.workdir, '--workdir'))[0]
      trained = [(f'trained, {model.label}', model)]
    rows = ['| model | layout | comparison |', '|---|---|---|']
    for name, stored in (*models(), *trained):
      with tempfile.TemporaryDirectory() as folder:
        lines = export.export(stored, pathlib.Path(folder) / 'out', check=True)
      layout = lines[0].split(': ')[1].split(',')[0]
      rows.append(f'| {name} | {layout} | {lines[1]} |')
      print(rows[-1], flush=True)
    write_text(pathlib.Path(arguments.output), '\n'.join(rows) + '\n')


if __name__ == '__main__':
  main()
