"""Exports a run's model as a folder that transformers loads; it only reads the run, which may go on.

  python -m desloc_jax export --workdir=runs/tiny --output=tiny-hf
  python -m desloc_jax export --workdir=runs/tiny --output=tiny-hf --step=600,800 --check

Layout 'auto' is Llama, Qwen3 for a gated MLP with model.qk_norm, and Apertus for a plain one with it.
Several steps are averaged.
"""

import argparse
from collections.abc import Sequence
import pathlib

import jax

from desloc_jax import commands, files
from desloc_jax.commands import Option
from desloc_jax.errors import UserError
from desloc_jax.hub import card, check as check_lib, layouts, opening, writing
from desloc_jax.hub.stored import StoredModel
from desloc_jax.logs.metrics import format_bytes
from desloc_jax.paths import resolve, shown
from desloc_jax.valid import one_of, POSITIVE


def export(
  stored: StoredModel,
  output: pathlib.Path,
  layout_name: str = 'auto',
  dtype: str = 'float32',
  shard_bytes: float = 5e9,
  check: bool = False,
) -> list[str]:
  """Writes `output`, which a crash leaves absent or complete; returns lines on what was done.

  Args:
    stored: the model.
    output: a folder that is not there.
    layout_name: of `layouts.LAYOUTS`, or 'auto'.
    dtype: of the weights.
    shard_bytes: of a file of weights, at most.
    check: whether to compare it with the model by transformers, before it gets its name.

  Raises:
    UserError: it is there, cannot be written, or is not what the model is.
  """
  layout = layouts.find_layout(stored.config, layout_name)
  if output.exists() or output.is_symlink():
    raise UserError(f'--output={output} exists; delete it or choose another name.')
  if not output.parent.is_dir():
    raise UserError(f'--output={output}: there is no folder {output.parent}.')
  if check:
    check_lib.check_available()
  with files.atomic_folder(output) as partial:
    size = writing.write_model(stored, layout, dtype, shard_bytes, partial)
    (partial / 'README.md').write_text(card.card(stored, layout, dtype), encoding='utf-8')
    lines = [str(check_lib.check_folder(stored, partial, dtype))] if check else []
  lines.insert(0, f'{shown(output)}: {layout.architecture}, {dtype}, {format_bytes(size)}')
  return lines + ([f'note: {layout.note}.'] if layout.note else [])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  return commands.parse(
    'desloc_jax export',
    __doc__,
    argv,
    **opening.OF_RUN,
    output=Option(pathlib.Path, 'the folder to write, which must not exist', required=True),
    layout=Option('auto', 'which architecture', one_of(('auto', *layouts.LAYOUTS))),
    dtype=Option('float32', 'of the weights', one_of(writing.DTYPES)),
    max_shard_gb=Option(5.0, '1e9 bytes a file of weights', POSITIVE),
    check=Option(False, 'load it by transformers and compare logits'),
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; a mistake ends in one line and exit code 2."""
  with commands.one_line_errors():
    arguments = _parse(argv)
    output = resolve(arguments.output, '--output')
    jax.config.update('jax_platforms', 'cpu')  # An accelerator may be at work on the run.

    stored = opening.open_one(arguments)
    lines = export(
      stored,
      output,
      arguments.layout,
      arguments.dtype,
      arguments.max_shard_gb * 1e9,
      arguments.check,
    )
    print('\n'.join(lines))
