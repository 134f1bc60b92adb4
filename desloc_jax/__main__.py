"""The commands beside run.py:

  python -m desloc_jax prepare --input=texts/ --output=data/mine --tokenizer=gpt2
  python -m desloc_jax tokenizer --input=texts/ --vocab_size=8192 --output=tokenizer.json
  python -m desloc_jax plot runs/tiny
  python -m desloc_jax checkpoints runs/tiny

`python -m desloc_jax COMMAND --help` says what each takes.
"""

from collections.abc import Sequence
import importlib
import sys

from desloc_jax import commands
from desloc_jax.errors import unknown_choice

# name: the module whose main takes the rest of the command line.
COMMANDS = {
  'prepare': 'desloc_jax.data.prepare',
  'tokenizer': 'desloc_jax.data.train_tokenizer',
  'plot': 'desloc_jax.logs.plot',
  'checkpoints': 'desloc_jax.checkpoints.listing',
}


def main(argv: Sequence[str]) -> None:
  """Runs a command; a mistake ends in one line and exit code 2."""
  if not argv or argv[0] in ('-h', '--help'):
    print(__doc__.strip())
    return
  with commands.one_line_errors():
    if argv[0] not in COMMANDS:
      raise unknown_choice('command', argv[0], COMMANDS)
  importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])


if __name__ == '__main__':
  main(sys.argv[1:])
