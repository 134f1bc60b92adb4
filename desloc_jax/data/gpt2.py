"""The GPT-2 tokenizer from its published ranks.

`gpt2.tiktoken` lists the 50,256 byte strings of GPT-2's vocabulary with their ranks, which are
their ids. The rank is also the order in which byte-pair encoding learnt them, so the merges that
the Hugging Face library wants can be recovered from the ranks alone.
"""

import base64
import importlib.resources

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers


def read_ranks_file() -> bytes:
  """Returns the package's rank file: lines of a token in base64, a space and its rank."""
  return (importlib.resources.files('desloc_jax.data') / 'gpt2.tiktoken').read_bytes()


def parse_ranks(lines: bytes) -> dict[bytes, int]:
  """Returns token -> rank from the content of a rank file."""
  pairs = (line.split() for line in lines.splitlines())
  return {base64.b64decode(token): int(rank) for token, rank in pairs}


def build_tokenizer(ranks: dict[bytes, int]) -> hf.Tokenizer:
  """Returns the byte-level BPE tokenizer of `ranks`, with GPT-2's pre-tokeniser."""
  merges = (recover_merge(token, ranks) for token in sorted(ranks, key=ranks.__getitem__))
  model = models.BPE(
    vocab={spell(token): rank for token, rank in ranks.items()},
    merges=[(spell(left), spell(right)) for left, right in filter(None, merges)],
  )
  tokenizer = hf.Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def recover_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
  """Returns the two parts that byte-pair encoding joined into `token`, None for a single byte.

  They are what is left of the token when its bytes are joined by the merges learnt before it.
  """
  if len(token) == 1:
    return None
  parts = [token[i : i + 1] for i in range(len(token))]
  while len(parts) > 2:
    joined = [left + right for left, right in zip(parts[:-1], parts[1:], strict=True)]
    first = min(range(len(joined)), key=lambda i: ranks.get(joined[i], len(ranks)))
    parts[first : first + 2] = [joined[first]]
  return parts[0], parts[1]


def spell(token: bytes) -> str:
  """Returns the printable characters by which a byte-level vocabulary spells `token`."""
  return ''.join(map(_BYTE_CHARACTERS.__getitem__, token))


def _byte_characters() -> list[str]:
  """Returns GPT-2's character for each byte: itself where printable, else one from U+0100 on."""
  printable = {*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = iter(range(0x100, 0x200))
  return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_BYTE_CHARACTERS = _byte_characters()
