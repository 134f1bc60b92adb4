"""Which documents are held out for validation."""

import hashlib

from desloc_jax.errors import unknown_choice, UserError

SPLITS = ('train', 'validation')


def check_split(split: str) -> str:
  """Returns `split`; raises UserError unless it is one of `SPLITS`."""
  if split not in SPLITS:
    raise unknown_choice('split', split, SPLITS)
  return split


def check_validation_fraction(fraction: float) -> float:
  """Returns `fraction`; raises UserError unless 0 <= fraction < 1."""
  if not 0 <= fraction < 1:
    raise UserError(
      f'validation_fraction is {fraction!r}, expected a number from 0 (nothing held out) to '
      'below 1, such as 0.01.'
    )
  return fraction


def is_held_out(text: str, fraction: float) -> bool:
  """Says whether the document `text` belongs to the validation split.

  The answer is a hash of the text alone, so it does not depend on the document's place, on a seed
  or on the process, and copies of a document can never be on both sides. About `fraction` of all
  different documents are held out; those held out at one fraction are so at every larger one.
  """
  digest = hashlib.sha256(text.encode('utf-8')).digest()
  return int.from_bytes(digest[:8], 'big') < fraction * 2**64
