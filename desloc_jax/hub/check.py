"""Compares an exported folder, as transformers loads it, with the model that it was made of."""

import dataclasses
import pathlib

import jax
import numpy as np

from desloc_jax import model as model_lib
from desloc_jax.data import read_documents
from desloc_jax.errors import UserError
from desloc_jax.hub.stored import read_params, StoredModel

# Of the largest logit: float32 sums in another order. Measured: 1e-5 at most, up to 135M.
_TOLERANCE = 1e-4
_TOKENS, _AWKWARD = 256, 'Naïve café — 東京 🙂\n\n\t  two  spaces, ﬁ, \u200b, 1,234.5 <|endoftext|'


def check_available() -> None:
  """Raises UserError where transformers cannot be imported with torch."""
  try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
  except ImportError as error:
    raise UserError(
      f'--check needs transformers and torch ({error}): pip install -r requirements-export.txt'
    ) from error


def check_folder(stored: StoredModel, folder: pathlib.Path, dtype: str) -> str:
  """Returns how far the logits are apart on real text, in a line.

  Raises:
    UserError: too far for float32, or the tokenizers differ.
  """
  import torch
  import transformers

  text = next(iter(read_documents('sotu'))).text
  tokens = _check_tokenizer(stored, folder, text)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  theirs.eval()
  with torch.no_grad():
    their_logits = theirs(torch.asarray(tokens)[None]).logits[0].numpy()
  config = dataclasses.replace(
    stored.config, compute_dtype='float32', attention='xla', seq_len=len(tokens)
  )

  @jax.jit
  def score(params):
    hidden = model_lib.GPT(config).apply({'params': params}, tokens[None])
    return model_lib.logits(params, hidden)[0]

  our_logits = np.asarray(score(read_params(stored)))
  difference, largest = np.abs(our_logits - their_logits).max(), np.abs(our_logits).max()
  same = (our_logits.argmax(-1) == their_logits.argmax(-1)).mean()
  line = (
    f'transformers {transformers.__version__}: logits of {len(tokens)} tokens differ by at most '
    f'{difference:.1e} of {largest:.1f}; {same:.1%} of the best tokens are the same'
  )
  if dtype == 'float32' and not difference <= _TOLERANCE * max(1.0, largest):
    raise UserError(f'{line}. That is no rounding: the folder was not written.')
  return line


def _check_tokenizer(stored: StoredModel, folder: pathlib.Path, text: str) -> np.ndarray:
  """Returns the first tokens of a text, the same to both tokenizers."""
  import transformers

  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  for each in (text[:20_000], _AWKWARD):
    ours = stored.tokenizer.encode(each).tolist()
    if theirs(each)['input_ids'] != ours:
      raise UserError(f'transformers encodes {each[:40]!r} otherwise: the folder was not written.')
    if stored.tokenizer.keeps_bytes and theirs.decode(ours) != each:
      raise UserError(f'transformers decodes {each[:40]!r} otherwise: the folder was not written.')
  return stored.tokenizer.encode(text[:20_000])[: min(_TOKENS, stored.seq_len)].astype(np.int32)
