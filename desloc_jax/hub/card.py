"""The model card of an exported folder: what the model is and how it was made."""

from collections.abc import Iterator, Mapping
from typing import Any

from desloc_jax.hub.layouts import Layout
from desloc_jax.hub.stored import StoredModel
from desloc_jax.logs.metrics import format_bytes
from desloc_jax.model import parameter_count
from desloc_jax.version import __version__, commit

_ROWS = {
  'run': 'run',
  'step': 'step',
  'averaged_steps': 'mean of the checkpoints of steps',
  'parameters': 'parameters of',
  'method': 'method',
  'workers': 'workers',
  'tokens': 'tokens',
  'bytes_sent_per_worker': 'sent by each worker',
  'training_loss': 'training loss, nats a token',
  'validation_loss': 'validation loss, nats a token',
  'data': 'data',
  'commit': 'trained by desloc_jax of commit',
}


def card(stored: StoredModel, layout: Layout, dtype: str) -> str:
  """Returns README.md, in Markdown."""
  exporter = ', commit '.join(filter(None, (f'desloc_jax {__version__}', commit())))
  rows = [(label, _text(name, stored.about)) for name, label in _ROWS.items()]
  rows = [('what', 'value'), ('---', '---'), *filter(lambda row: row[1], rows)]
  table = '\n'.join(f'| {name} | {value} |' for name, value in [*rows, ('exported by', exporter)])
  end = stored.tokenizer.decode([stored.tokenizer.end_of_document])
  notes = '\n'.join(f'- {note}' for note in _notes(stored, layout))
  return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- desloc_jax
---

# {_title(stored)}

A GPT of {parameter_count(stored.config):,} parameters, trained with desloc_jax
([DES-LOC](https://arxiv.org/abs/2505.22549) in JAX), as `{layout.architecture}` in {dtype}.

{table}

- It was trained with {stored.seq_len} tokens; beyond, its positions mean nothing.
- Documents end in `{end}`; nothing is put before a text.
{notes}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (kind.from_pretrained('.') for kind in (AutoModelForCausalLM, AutoTokenizer))
text = tokenizer('The state of the Union', return_tensors='pt')
print(tokenizer.decode(model.generate(**text, max_new_tokens=40, do_sample=True)[0]))
```
"""


def _title(stored: StoredModel) -> str:
  about = stored.about
  if steps := about.get('averaged_steps'):
    return f'{about["run"]}, the mean of steps {_text("averaged_steps", {"averaged_steps": steps})}'
  return f'{about["run"]}, step {about["step"]}' if 'run' in about else stored.label


def _notes(stored: StoredModel, layout: Layout) -> Iterator[str]:
  if stored.about.get('validation_loss') is None:
    yield '`python -m desloc_jax eval --model=FOLDER --data=TEXTS` tells its loss: none was measured.'
  if layout.constants:
    yield (
      'The MLP has no gate: `up_proj` is constant (no weights, a bias of one), and `gate_proj` is '
      'what was trained. That is exact, and takes memory for zeros.'
    )
  if layout.note:
    yield f'{layout.note}.'
  if stored.tokenizer.vocab_size < stored.config.vocab_size:
    yield (
      f'The tokenizer has {stored.tokenizer.vocab_size} ids; the embedding has '
      f'{stored.config.vocab_size} rows.'
    )


def _text(name: str, about: Mapping[str, Any]) -> str:
  value = about.get(name)
  if value in (None, '', {}):
    return ''
  if name == 'bytes_sent_per_worker':
    return format_bytes(value)
  if name == 'data':
    return ', '.join(f'{source}: {path}' for source, path in value.items())
  if isinstance(value, list):
    return ', '.join(map(str, value))
  if isinstance(value, float):
    return f'{value:.4f}'
  return f'{value:,}' if name == 'tokens' else str(value)
