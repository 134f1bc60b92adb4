"""Runs that begin from a model that is there."""

import pytest

from desloc_jax.errors import UserError
from desloc_jax.hub import export, run_models
from desloc_jax.logs.metrics import read_metrics
from tests.runs import small_config, train_on_two


def begun(text, workdir, **options):
  train_on_two(small_config(text, stop_at=1, **options), workdir)
  lines = read_metrics(workdir)
  return lines[0]['val_loss'], next(line['restored'] for line in lines if 'restored' in line)


def test_a_run_begins_where_another_is(text, seven_steps, tmp_path):
  expected = read_metrics(seven_steps)[-1]['val_loss']
  loss, said = begun(text, tmp_path / 'of_run', **{'init.run': f'{seven_steps}:7'})
  assert loss == expected and 'step 7' in said


def test_an_exported_model_begins_with_the_same_loss_to_the_bit(text, seven_steps, tmp_path):
  pytest.importorskip('safetensors')
  export.export(run_models.open_steps(seven_steps)[0], tmp_path / 'out')
  options = {'init.model': str(tmp_path / 'out')}
  loss, said = begun(text, tmp_path / 'of_folder', **options)
  assert loss == read_metrics(seven_steps)[-1]['val_loss']
  assert 'begun from' in said


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'model.width': 64, 'model.mlp': 'gated'}, 'set --config.model.width=32 .*mlp=plain'),
    ({'data.tokenizer': 'gpt2', 'model.vocab_size': 0}, 'has tokenizer bytes, of 257 ids, and'),
    ({'init.model': 'x'}, 'both set'),
  ],
)
def test_another_model_is_refused_before_anything_is_made(
  text, seven_steps, tmp_path, options, message
):
  with pytest.raises(UserError, match=message):
    begun(text, tmp_path / 'new', **{'init.run': str(seven_steps)} | options)
  assert not (tmp_path / 'new' / 'metrics.jsonl').exists()
