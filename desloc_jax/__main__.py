"""The commands beside run.py: `python -m desloc_jax COMMAND`."""

from collections.abc import Sequence
import sys

from desloc_jax import commands, starting
from desloc_jax.errors import unknown_choice

# name: the module whose main takes the rest of the command line, and an example of that.
COMMANDS = {
  'train': ('desloc_jax.train.main', '--config=configs/tiny.py'),
  'prepare': (
    'desloc_jax.data.prepare', '--input=texts/ --output=data/mine --tokenizer=gpt2',
  ),
  'tokenizer': (
    'desloc_jax.data.train_tokenizer',
    '--input=texts/ --vocab_size=8192 --output=tokenizer.json',
  ),
  'options': ('desloc_jax.options.help_text', '> options.md'),
  'plot': ('desloc_jax.logs.plot', 'runs/tiny'),
  'checkpoints': ('desloc_jax.checkpoints.list_checkpoints', 'runs/tiny'),
  'sample': (
    'desloc_jax.inference.sample', "--workdir=runs/tiny --prompt='The state of the Union'",
  ),
  'eval': ('desloc_jax.inference.evaluation', '--workdir=runs/tiny --step=all'),
  'export': ('desloc_jax.hub.export', '--workdir=runs/tiny --output=tiny-hf'),
}  # fmt: skip


def main(argv: Sequence[str]) -> None:
  """Runs a command; a mistake ends in one line and exit code 2."""
  with commands.one_line_errors():
    if not argv or argv[0] in ('-h', '--help'):
      return _print_help()
    if argv[0] not in COMMANDS:
      raise unknown_choice('command', argv[0], COMMANDS)
  starting.load(COMMANDS[argv[0]][0]).main(argv[1:])


def _print_help() -> None:
  examples = [f'  python -m desloc_jax {name} {line}' for name, (_, line) in COMMANDS.items()]
  print('\n'.join(['usage: python -m desloc_jax COMMAND ..., such as', '', *examples]))
  print('\npython -m desloc_jax COMMAND --help says what each takes.')


if __name__ == '__main__':
  main(sys.argv[1:])
