"""Samples text from a run's model or an exported one, and prints it as it is made.

  python -m desloc_jax sample --workdir=runs/tiny --prompt='The state of the Union'
  python -m desloc_jax sample --model=tiny-hf --prompt='My fellow citizens' --temperature=0

Beside a run on an accelerator begin with JAX_PLATFORMS=cpu.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
import itertools

from desloc_jax import commands
from desloc_jax.commands import Option
from desloc_jax.data import Tokenizer
from desloc_jax.hub import opening
from desloc_jax.hub.stored import read_params
from desloc_jax.inference.decode import Choice, generate
from desloc_jax.valid import at_least, between, POSITIVE_SHARE

_UNFINISHED = '\N{REPLACEMENT CHARACTER}'
_LONGEST = 32  # Tokens that a character may be cut into.


def pieces(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
  """Yields the text of tokens as they come, whole characters only."""
  waiting, context = [], []
  for token in tokens:
    waiting.append(token)
    # Behind tokens that are shown already, as a decoder may strip what begins a text.
    text = tokenizer.decode(context + waiting)[len(tokenizer.decode(context)) :]
    if text.endswith(_UNFINISHED) and len(waiting) < _LONGEST:
      continue
    yield text
    waiting, context = [], waiting
  if waiting:
    yield tokenizer.decode(context + waiting)[len(tokenizer.decode(context)) :]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  return commands.parse(
    'desloc_jax sample',
    __doc__,
    argv,
    **opening.OF_RUN_OR_FOLDER,
    prompt=Option('', 'what the text begins with (default: a new document)'),
    tokens=Option(200, 'at most', at_least(1)),
    temperature=Option(0.8, '0: the most likely', between(0, 10**6)),
    top_p=Option(0.95, 'share that is drawn from', POSITIVE_SHARE),
    seed=Option(0, 'of the draws', at_least(0, 2**63)),
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; a mistake ends in one line and exit code 2."""
  with commands.one_line_errors():
    arguments = _parse(argv)
    stored = opening.open_one(arguments)
    tokenizer = stored.tokenizer
    choice = Choice(arguments.temperature, arguments.top_p, tokenizer.vocab_size)
    end = tokenizer.end_of_document
    prompt = tokenizer.encode(arguments.prompt).tolist() or [end]
    made = generate(
      read_params(stored), stored.config, prompt, choice, arguments.seed, stored.seq_len
    )
    made = itertools.takewhile(lambda token: token != end, itertools.islice(made, arguments.tokens))
    print(arguments.prompt, end='', flush=True)
    for text in pieces(made, tokenizer):
      print(text, end='', flush=True)
    print()
