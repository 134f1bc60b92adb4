"""A run that begins from a model that is there: of another run, or of a Hugging Face folder.

Only the parameters are taken. Moments, counters, schedule and data begin anew.
"""

from absl import logging
import flax.traverse_util
import jax
from ml_collections import config_dict
import optax

from desloc_jax.checkpoints.train_state import TrainState
from desloc_jax.data import Tokenizer
from desloc_jax.errors import UserError
from desloc_jax.hub.folders import FolderModel
from desloc_jax.hub.run_models import open_steps
from desloc_jax.hub.stored import StoredModel
from desloc_jax.options.values import model_config
from desloc_jax.paths import resolve
from desloc_jax.train.job import Job
from desloc_jax.train.setup.mesh import place

# What makes two models compute the same: option -> what it comes to.
_SAME = {
  'vocab_size': 'vocab_size', 'layers': 'layers', 'width': 'width', 'heads': 'heads',
  'kv_heads': 'key_heads', 'head_size': 'head_dim', 'mlp': 'mlp', 'mlp_hidden': 'hidden',
  'norm_eps': 'norm_eps', 'rope_base': 'rope_base', 'rope_scaling': 'rope_scaling',
  'qk_norm': 'qk_norm', 'tie_embeddings': 'tie_embeddings',
}  # fmt: skip
_AWKWARD = (
  'Naïve café — 東京 🙂\n\n\t  two  spaces, \u200b, 1,234.5 of THE state; don\'t "quote" it.'
)


def open_initial(config: config_dict.ConfigDict, tokenizer: Tokenizer) -> StoredModel | None:
  """Returns the model that a run begins from, None for a random one.

  Raises:
    UserError: it cannot be read, or is not the model, or of the tokenizer, that is configured.
  """
  name = 'init.run' if config.init.run else 'init.model'
  if not (path := config.init.run or config.init.model):
    return None
  if config.init.run and config.init.model:
    raise UserError('init.run and init.model are both set; expected one of them.')
  stored = _open_run(path) if config.init.run else FolderModel(resolve(path, name))
  _check_tokenizer(name, stored, tokenizer)
  _check_model(name, stored, config, tokenizer)
  if config.seq_len > stored.seq_len:
    logging.warning(
      '%s was trained with %d tokens a sequence, and this run has %d.',
      stored.label,
      stored.seq_len,
      config.seq_len,
    )
  return stored


def read_initial(job: Job, stored: StoredModel) -> optax.Params:
  """Returns the parameters of a model as the job has them, one in the host's memory at a time."""
  likes = flax.traverse_util.flatten_dict(job.program.state_like.params, sep='.')
  leaves = {name: place(stored.read(name), like.sharding) for name, like in likes.items()}
  return flax.traverse_util.unflatten_dict(leaves, sep='.')


def state_from(job: Job, params: optax.Params) -> TrainState:
  """Returns the state before the first step, with these parameters on every worker."""
  return jax.jit(job.program.state_of, out_shardings=job.program.shardings)(params)


def _open_run(spec: str) -> StoredModel:
  path, colon, step = spec.rpartition(':')
  if not (colon and step.isdecimal()):
    path, step = spec, ''
  return open_steps(resolve(path, 'init.run'), [int(step)] if step else [])[0]


def _check_model(
  name: str, stored: StoredModel, config: config_dict.ConfigDict, tokenizer: Tokenizer
) -> None:
  ours = model_config(config, tokenizer.vocab_size)
  different = {
    option: getattr(stored.config, value)
    for option, value in _SAME.items()
    if getattr(stored.config, value) != getattr(ours, value)
  }
  if different:
    flags = ' '.join(f'--config.model.{option}={_shown(v)}' for option, v in different.items())
    raise UserError(f'{name}: {stored.label} is another model than is configured; set {flags}.')


def _shown(value: object) -> str:
  return str(value).replace(' ', '')


def _check_tokenizer(name: str, stored: StoredModel, tokenizer: Tokenizer) -> None:
  theirs = stored.tokenizer
  if theirs.fingerprint == tokenizer.fingerprint:
    return
  same = theirs.encode(_AWKWARD).tolist() == tokenizer.encode(_AWKWARD).tolist()
  sizes = lambda t: (t.vocab_size, t.end_of_document)
  if not same or sizes(theirs) != sizes(tokenizer):
    raise UserError(
      f'{name}: {stored.label} has tokenizer {theirs.name}, of {theirs.vocab_size} ids, and '
      f'data.tokenizer is {tokenizer.name}, of {tokenizer.vocab_size}: its embedding means other '
      'tokens. Set data.tokenizer to its tokenizer.json.'
    )
