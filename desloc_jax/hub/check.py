"""Compares an exported folder, as transformers loads it, with the model that it was made of."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from desloc_jax import model as model_lib
from desloc_jax.data import read_documents
from desloc_jax.errors import UserError
from desloc_jax.hub.stored import read_params, StoredModel

# Of the largest logit: float32 sums in another order. Measured: 1e-5 at most, up to 135M.
_TOLERANCE = 1e-4
_TOKENS, _AWKWARD = 256, 'Naïve café — 東京 🙂\n\n\t  two  spaces, ﬁ, \u200b, 1,234.5 <|endoftext|'


class Comparison(NamedTuple):
  """How far transformers' logits are from ours."""

  version: str  # Of transformers.
  tokens: int
  difference: float  # The largest one of any logit.
  largest: float  # Logit.
  same: float  # Share of the tokens whose largest logit is of the same id.

  def __str__(self) -> str:
    return (
      f'transformers {self.version}: logits of {self.tokens} tokens differ by at most '
      f'{self.difference:.1e} of {self.largest:.1f}; {self.same:.1%} of the best tokens are the same'
    )


def check_available() -> None:
  """Raises UserError where transformers cannot be imported with torch."""
  try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
  except ImportError as error:
    raise UserError(
      f'--check needs transformers and torch ({error}): pip install -r requirements-export.txt'
    ) from error


def check_folder(stored: StoredModel, folder: pathlib.Path, dtype: str) -> Comparison:
  """Compares logits on real text.

  Raises:
    UserError: they are too far apart for float32, or the tokenizers differ.
  """
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
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
  found = Comparison(
    version=transformers.__version__,
    tokens=len(tokens),
    difference=float(np.abs(our_logits - their_logits).max()),
    largest=float(np.abs(our_logits).max()),
    same=float((our_logits.argmax(-1) == their_logits.argmax(-1)).mean()),
  )
  if dtype == 'float32' and not found.difference <= _TOLERANCE * max(1.0, found.largest):
    raise UserError(f'{found}. That is no rounding: the folder was not written.')
  return found


def _check_tokenizer(stored: StoredModel, folder: pathlib.Path, text: str) -> np.ndarray:
  """Returns the first tokens of a text, the same to both tokenizers."""
  import transformers

  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  for each in (text[:20_000], _AWKWARD):
    ours = stored.tokenizer.encode(each).tolist()
    if theirs(each, verbose=False)['input_ids'] != ours:
      raise UserError(f'transformers encodes {each[:40]!r} otherwise: the folder was not written.')
    if stored.tokenizer.keeps_bytes and theirs.decode(ours) != each:
      raise UserError(f'transformers decodes {each[:40]!r} otherwise: the folder was not written.')
  return stored.tokenizer.encode(text[:20_000])[: min(_TOKENS, stored.seq_len)].astype(np.int32)
